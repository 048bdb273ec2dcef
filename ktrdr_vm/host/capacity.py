"""Capacity check: an instance for which the available memory or disk of the host does not suffice is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

from ktrdr_vm.errors import HostError

# Reserved for the host.
MEMORY_FLOOR = 512
DISK_FLOOR = 2048
# Guests are paused below the first value and continue above the second: the rest is reserved for the host.
DISK_LAST, DISK_ENOUGH = 1024, 1280
# QEMU and the guard, in addition to the memory of the guest; the guard and its children were measured at 41 MiB (PSS).
OVERHEAD = 160


def require_capacity(directory: Path, memory: int) -> None:
    """HostError if memory or disk is missing. `memory` in MiB. The overlay grows with use, so only the disk reserve is
    checked."""
    available = read_available_memory()
    needed = memory + OVERHEAD + MEMORY_FLOOR
    if available < needed:
        raise HostError(
            f"{available} MiB of memory are available, {needed} are needed: {memory} for the guest, {OVERHEAD} for"
            f" QEMU, {MEMORY_FLOOR} reserved for the host",
            where="/proc/meminfo",
            hint="destroy an instance (`ktrdr-vm list`), or reduce resources.memory",
        )
    free = shutil.disk_usage(directory).free >> 20
    if free < DISK_FLOOR:
        raise HostError(
            f"{free} MiB of disk are free, {DISK_FLOOR} are reserved for the host",
            where=str(directory),
            hint="run `ktrdr-vm gc`, remove images (`ktrdr-vm images list`), or move $KTRDR_VM_HOME to a larger disk",
        )


def read_available_memory() -> int:
    """MiB that are available without swapping, as reported by the kernel."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    raise HostError(
        "the kernel does not report the available memory", where="/proc/meminfo", hint="Linux 3.14 or later is needed"
    )
