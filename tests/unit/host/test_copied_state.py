"""The state of a running VM is copied while it is paused, or while it runs; what a process that died has begun is
ended."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import fork
from ktrdr_vm.host.page_cache import find_cached


class Monitor:
    """The libvirt of one domain, with a log of what it was asked."""

    def __init__(self, status: str = "completed") -> None:
        self.log: list[str] = []
        self.status = status

    def suspend(self, _: str) -> None:
        self.log.append("suspend")

    def monitor(
        self, _: str, execute: str, arguments: dict[str, Any] | None = None, *, files: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        if execute == "migrate-set-capabilities":
            execute = f"ignore shared {arguments['capabilities'][0]['state']}" if arguments else execute
        self.log.append(execute)
        return {"status": self.status, "downtime": 56} if execute == "query-migrate" else {"max-bandwidth": 1}


BEGUN = [
    "ignore shared True",
    "query-migrate-parameters",
    "migrate-set-parameters",
    "getfd",
    "migrate",
    "query-migrate",
]
ENDED = ["migrate-set-parameters", "ignore shared False"]


def test_a_paused_vm_is_paused_before_its_memory_is_read(tmp_path: Path) -> None:
    machine = Monitor()
    assert 0 < fork.copy_state(machine, "one", tmp_path / "state", live=False) < 10  # type: ignore[arg-type]
    assert machine.log == ["suspend", *BEGUN, *ENDED]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_a_live_copy_says_how_long_qemu_paused_the_vm(tmp_path: Path) -> None:
    machine = Monitor()
    assert fork.copy_state(machine, "one", tmp_path / "state", live=True) == 0.056  # type: ignore[arg-type]
    assert machine.log == [*BEGUN, *ENDED]


def test_a_copy_that_fails_is_cancelled_and_leaves_no_setting(tmp_path: Path) -> None:
    machine = Monitor("failed")
    with pytest.raises(ProvisionError, match="could not be written"):
        fork.copy_state(machine, "one", tmp_path / "state", live=False)  # type: ignore[arg-type]
    assert machine.log == ["suspend", *BEGUN, "migrate_cancel", *ENDED]


def test_pages_that_were_never_used_are_read_before_the_pause(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    with file.open("w+b") as memory:
        memory.truncate(3 << 20)
        with mmap.mmap(memory.fileno(), 3 << 20, flags=mmap.MAP_PRIVATE):
            assert find_cached(file).count(1) < 10
            fork.touch_memory(os.getpid(), str(file))
            assert find_cached(file).count(1) == (3 << 20) // mmap.PAGESIZE
    # One that is not mapped is none of this process.
    fork.touch_memory(os.getpid(), str(tmp_path / "other"))
