"""Saving and forking: the state of a domain without its memory is written to a file, from which other domains start.

The memory stays in the file of the template, because the capability x-ignore-shared keeps shared memory out of the
stream; a fork maps that file copy-on-write. Measured with QEMU 7.2: 0.6 MB of state for a guest of any size. Memory
that a daemon shares cannot be mapped in this way: the fork has memory of its own, which is filled from the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.libvirt import Libvirt

# Seconds. The state is small; QEMU needs the time to flush the disk.
LIMIT = 60.0
# Seconds. Memory that a busy guest keeps changing is written more than once.
COPY_LIMIT = 600.0
_UNLIMITED = 1 << 40
_FD_NAME = "ktrdr-state"
_COPYING = ("setup", "active", "device", "pre-switchover", "cancelling")


def save_state(libvirt: Libvirt, domain: str, target: Path) -> None:
    """Write the state of a domain without its shared memory. The domain stays paused."""
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


def copy_state(libvirt: Libvirt, domain: str, target: Path, *, live: bool) -> float:
    """Write the whole state of a running domain, private memory included, and leave it paused.

    With `live` it runs until only the rest of its memory is left. What `load_state` loads, and the disk at the end of
    this call, are of one moment. Returns the seconds of the pause so far.
    """
    began = time.monotonic()
    if not live:
        libvirt.suspend(domain)
    _ignore_shared(libvirt, domain)
    rate = libvirt.monitor(domain, "query-migrate-parameters").get("max-bandwidth", 0)
    libvirt.monitor(domain, "migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        libvirt.monitor(domain, "getfd", {"fdname": _FD_NAME}, files=(descriptor,))
        libvirt.monitor(domain, "migrate", {"uri": f"fd:{_FD_NAME}"})
        downtime = int(_wait(libvirt, domain, COPY_LIMIT).get("downtime", 0))
    except BaseException:
        libvirt.monitor(domain, "migrate_cancel")
        raise
    finally:
        os.close(descriptor)
        libvirt.monitor(domain, "migrate-set-parameters", {"max-bandwidth": rate})
        _ignore_shared(libvirt, domain, state=False)
    return downtime / 1000 if live else time.monotonic() - began


def touch_memory(pid: int, memory: str) -> None:
    """Read the memory that the QEMU `pid` maps from this file, so that `copy_state` need not wait for pages that were
    never used."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if not line.endswith(f" {memory}"):
            continue
        start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
        block = bytearray(1 << 20)
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (length := file.readinto(memoryview(block)[: end - start])):
                start += length


def end_copy(libvirt: Libvirt, domain: str) -> None:
    """Cancel the copy that `copy_state` of a killed process began: QEMU would continue it, and pause the domain at its
    end."""
    libvirt.monitor(domain, "migrate_cancel")
    end = time.monotonic() + LIMIT
    while libvirt.monitor(domain, "query-migrate").get("status") in _COPYING and time.monotonic() < end:
        time.sleep(0.02)
    _ignore_shared(libvirt, domain, state=False)


def continue_domain(libvirt: Libvirt, domain: str) -> None:
    """Continue a domain that `copy_state` paused. libvirt is notified of that pause by an event, and can resume the
    domain only after it."""
    if libvirt.monitor(domain, "query-status").get("running"):
        return
    end = time.monotonic() + LIMIT
    while (facts := libvirt.find(domain)) is not None and facts.state != "paused" and time.monotonic() < end:
        time.sleep(0.005)
    libvirt.resume(domain)


def load_state(libvirt: Libvirt, domain: str, source: Path) -> None:
    """Load the state into a domain that waits for it (`-incoming defer`). The domain stays paused."""
    _ignore_shared(libvirt, domain)
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        libvirt.monitor(domain, "getfd", {"fdname": _FD_NAME}, files=(descriptor,))
        libvirt.monitor(domain, "migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
        _wait(libvirt, domain, COPY_LIMIT)
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
    """The memory backend of the command line of ktrdr-vm. Unlike the unused one of libvirt, it does not allow
    sealing."""
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


def _wait(libvirt: Libvirt, domain: str, limit: float = LIMIT) -> dict[str, Any]:
    end = time.monotonic() + limit
    while True:
        status = libvirt.monitor(domain, "query-migrate")
        state = status.get("status")
        if state == "completed":
            return dict(status)
        if state in ("failed", "cancelled") or time.monotonic() > end:
            raise ProvisionError(
                f"the state of the VM could not be written or read: {status.get('error-desc') or state}",
                where=domain,
                hint="remove the template with `ktrdr-vm templates remove`; `apply --cold` boots without one",
            )
        time.sleep(0.002)
