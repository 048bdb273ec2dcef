"""The watch over the disk of the host: a guest that fills the disk is paused before the disk is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.capacity import DISK_ENOUGH, DISK_LAST

# Maximum bytes of guard.log, the standard error of the guard and of its children.
MAX_LOG = 4 * 1024 * 1024


class SpaceWatch:
    """Pauses `domain` while the disk that contains `directory` has less than DISK_LAST free, and resumes what it
    paused."""

    def __init__(self, directory: Path, domain: DomainControl, ledger: Ledger) -> None:
        self._directory = directory
        self._domain = domain
        self._ledger = ledger
        self._paused = False

    def poll(self) -> None:
        """Called at every poll of the guard."""
        if os.fstat(2).st_size > MAX_LOG:
            # All writers append, children included, so that they continue at the beginning of the file.
            os.ftruncate(2, 0)
        free = shutil.disk_usage(self._directory).free >> 20
        try:
            if self._paused:
                self._resume(free)
            elif free < DISK_LAST:
                self._pause(free)
        except KtrdrError:
            return  # repeated at the next poll

    def _pause(self, free: int) -> None:
        if self._domain.find_state() != "running":
            return
        self._domain.suspend()
        self._paused = True
        message = f"the host has {free} MiB of disk left; the guest stands still until there are {DISK_ENOUGH}"
        self._ledger.write("guard", "note", rule="space", message=message)

    def _resume(self, free: int) -> None:
        if self._domain.find_state() != "paused":
            self._paused = False  # another program has ended or resumed it
        elif free >= DISK_ENOUGH:
            self._domain.resume()
            self._paused = False
            self._ledger.write(
                "guard", "note", rule="space", message=f"the host has {free} MiB of disk again; the guest goes on"
            )
