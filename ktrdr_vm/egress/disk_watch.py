"""The watch over the host's disk: a guest that fills it stands still before the host has none left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ktrdr_vm.egress.domain_control import Machine
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.capacity import DISK_ENOUGH, DISK_LAST

# Bytes of guard.log, in which the guard and its children complain: it is their standard error.
MAX_LOG = 4 * 1024 * 1024


class SpaceWatch:
    """Pauses `machine` while the disk that `directory` is on has less than the host's last, and resumes what it
    paused."""

    def __init__(self, directory: Path, machine: Machine, ledger: Ledger) -> None:
        self._directory = directory
        self._machine = machine
        self._ledger = ledger
        self._paused = False

    def look(self) -> None:
        """At every look of the guard."""
        if os.fstat(2).st_size > MAX_LOG:
            # It is appended to, by children as well, so it goes on from its beginning.
            os.ftruncate(2, 0)
        free = shutil.disk_usage(self._directory).free >> 20
        try:
            if self._paused:
                self._release(free)
            elif free < DISK_LAST:
                self._hold(free)
        except KtrdrError:
            return  # at the next look

    def _hold(self, free: int) -> None:
        if self._machine.find_state() != "running":
            return
        self._machine.suspend()
        self._paused = True
        message = f"the host has {free} MiB of disk left; the guest stands still until there are {DISK_ENOUGH}"
        self._ledger.write("guard", "note", rule="space", message=message)

    def _release(self, free: int) -> None:
        if self._machine.find_state() != "paused":
            self._paused = False  # somebody else has ended or resumed it
        elif free >= DISK_ENOUGH:
            self._machine.resume()
            self._paused = False
            self._ledger.write(
                "guard", "note", rule="space", message=f"the host has {free} MiB of disk again; the guest goes on"
            )
