"""Save-file mechanics: a domain's state without its memory goes to a file, and another domain begins from it.

The memory stays where it is, in the template's file, because the capability x-ignore-shared keeps shared memory out of the stream;
a fork maps that file copy-on-write. Measured with QEMU 7.2: 0.6 MB of state for a guest of any size. Memory that a daemon shares cannot
be mapped so; it is the fork's own, and is filled from the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.libvirt import Libvirt

# The state is small; what takes time is QEMU flushing the disk.
LIMIT = 60.0
_FD_NAME = "ktrdr-state"


def save_state(libvirt: Libvirt, domain: str, target: Path) -> None:
    """Write the state of a domain, which is left stopped for good. Its shared memory is not in it."""
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
    """Give a domain that waits for it (`-incoming defer`) its state. It is left paused."""
    _ignore_shared(libvirt, domain)
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        libvirt.monitor(domain, "getfd", {"fdname": _FD_NAME}, files=(descriptor,))
        libvirt.monitor(domain, "migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        _wait(libvirt, domain)
        # Whatever libvirt saves of it later is to be whole, and is read by a QEMU that was not told.
        _ignore_shared(libvirt, domain, state=False)
    finally:
        os.close(descriptor)


def fill_memory(pid: int, source: Path) -> None:
    """Copy a template's memory into that of the paused QEMU `pid`. Holes stay holes: what the template never touched costs nothing."""
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
    """The memory that we named to QEMU: unlike libvirt's own, which stands beside it unused, nothing can be sealed in it."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("/memfd:memory-backend-memfd"):
                continue
            descriptor = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # closed while we looked
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL:
            found.append(descriptor)
        else:
            os.close(descriptor)
    if len(found) != 1:
        for descriptor in found:
            os.close(descriptor)
        raise ProvisionError(
            f"{len(found)} memories of QEMU look like the machine's", where=f"process {pid}", hint="`apply --cold` does without a template"
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
                hint="`ktrdr-vm templates remove` the template; `apply --cold` does without one",
            )
        time.sleep(0.01)
