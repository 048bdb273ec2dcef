"""Saving and forking: the state of a domain without its memory is written to a file, from which other domains start.

The memory stays where it is, in the template's file, because the capability x-ignore-shared keeps shared memory out of
the stream; a fork maps that file copy-on-write. Measured with QEMU 7.2: 0.6 MB of state for a guest of any size. Memory
that a daemon shares cannot be mapped so; it is the fork's own, and is filled from the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.libvirt import Libvirt

# The state is small; QEMU needs the time to flush the disk.
LIMIT = 60.0
_FD_NAME = "ktrdr-state"


def save_state(libvirt: Libvirt, domain: str, target: Path) -> None:
    """Write the state of a domain without its shared memory. The domain stays stopped."""
    libvirt.suspend(domain)
    _ignore_shared(libvirt, domain)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        libvirt.monitor(domain, "getfd", {"fdname": _FD_NAME}, files=(descriptor,))
        libvirt.monitor(domain, "migrate", {"uri": f"fd:{_FD_NAME}"})
        _wait(libvirt, domain)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_state(libvirt: Libvirt, domain: str, source: Path) -> None:
    """Load the state into a domain that waits for it (`-incoming defer`). It stays paused."""
    _ignore_shared(libvirt, domain)
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        libvirt.monitor(domain, "getfd", {"fdname": _FD_NAME}, files=(descriptor,))
        libvirt.monitor(domain, "migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        _wait(libvirt, domain)
        # A later save by libvirt must be complete, because the QEMU that loads it does not have this capability set.
        _ignore_shared(libvirt, domain, state=False)
    finally:
        os.close(descriptor)


def fill_memory(pid: int, source: Path) -> None:
    """Copy a template's memory into that of the paused QEMU `pid`. Holes are kept, so that unused memory costs
    nothing."""
    with source.open("rb") as file:
        target = _open_memory(pid)
        try:
            size, offset = os.fstat(file.fileno()).st_size, 0
            while offset < size:
                try:
                    start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
                except OSError:
                    return  # the rest is a hole
                offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                os.lseek(target, start, os.SEEK_SET)
                while start < offset:
                    start += os.sendfile(target, file.fileno(), start, offset - start)
        finally:
            os.close(target)


def _open_memory(pid: int) -> int:
    """The memory backend on our command line. Unlike the unused one of libvirt, it does not allow sealing."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("/memfd:memory-backend-memfd"):
                continue
            descriptor = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # closed meanwhile
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL:
            found.append(descriptor)
        else:
            os.close(descriptor)
    if len(found) != 1:
        for descriptor in found:
            os.close(descriptor)
        raise ProvisionError(
            f"{len(found)} memory mappings of QEMU could be the guest's",
            where=f"process {pid}",
            hint="`apply --cold` boots without a template",
        )
    return found[0]


def _ignore_shared(libvirt: Libvirt, domain: str, *, state: bool = True) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": state}]
    libvirt.monitor(domain, "migrate-set-capabilities", {"capabilities": capabilities})


def _wait(libvirt: Libvirt, domain: str) -> None:
    end = time.monotonic() + LIMIT
    while True:
        status = libvirt.monitor(domain, "query-migrate")
        state = status.get("status")
        if state == "completed":
            return
        if state in ("failed", "cancelled") or time.monotonic() > end:
            raise ProvisionError(
                f"the state of the template could not be moved: {status.get('error-desc') or state}",
                where=domain,
                hint="remove the template with `ktrdr-vm templates remove`; `apply --cold` boots without one",
            )
        time.sleep(0.01)
