"""Admission by what is really free: an instance that would push the host into swap or fill its disk is refused, clearly."""

from __future__ import annotations

import shutil
from pathlib import Path

from ktrdr_vm.errors import HostError

# What the host keeps for itself.
MEMORY_FLOOR = 512
DISK_FLOOR = 2048
# Beneath the first of these guests stand still, from the second on they go again: what is left is for the host to mend itself with.
DISK_LAST, DISK_ENOUGH = 1024, 1280
# QEMU and the guard beside the guest's own memory; the guard and its children were measured at 41 MiB (PSS).
OVERHEAD = 160


def require_capacity(directory: Path, memory: int) -> None:
    """`memory` in MiB. The overlay grows with use, so the disk is asked for its floor only. HostError says what is missing."""
    available = read_available_memory()
    needed = memory + OVERHEAD + MEMORY_FLOOR
    if available < needed:
        raise HostError(
            f"{available} MiB of memory are available, {needed} are needed: {memory} for the guest, {OVERHEAD} beside it, "
            f"{MEMORY_FLOOR} for the host",
            where="/proc/meminfo",
            hint="destroy an instance (`ktrdr-vm list`), or make resources.memory smaller",
        )
    free = shutil.disk_usage(directory).free >> 20
    if free < DISK_FLOOR:
        raise HostError(
            f"{free} MiB of disk are free, {DISK_FLOOR} are the host's floor",
            where=str(directory),
            hint="`ktrdr-vm gc`, `ktrdr-vm images list`, or move $KTRDR_VM_HOME to a larger disk",
        )


def read_available_memory() -> int:
    """MiB that the kernel says can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    raise HostError("the kernel does not say what memory is available", where="/proc/meminfo", hint="Linux 3.14 or later is needed")
