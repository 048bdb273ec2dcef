"""Runs tasks in a guest that is answered by a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.guest.protocol import GuestResult, GuestTimeout
from ktrdr_vm.report.model import GateResult
from tests.fakes.guest import Answer, FakeGuest, Ran


@dataclass
class Clock:
    """A clock that only moves when somebody sleeps."""

    time: float = 0.0

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Gate:
    """Runs tasks given as YAML, and keeps the events."""

    guest: FakeGuest
    root: Path
    clock: Clock = field(default_factory=Clock)
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def run(
        self, tasks: str, *, play: str = "", read: Callable[[str], str] | None = None, **settings: Any
    ) -> GateResult:
        text = f"- hosts: all\n  gather_facts: false\n{play}  tasks:\n" + "".join(
            f"    {line}\n" for line in tasks.strip("\n").splitlines()
        )
        (self.root / "artifacts").mkdir(exist_ok=True)
        context = GateContext(
            roots=(self.root,),
            artifacts=self.root / "artifacts",
            now=lambda: "2026-01-01T00:00:00Z",
            monotonic=self.clock.monotonic,
            sleep=self.clock.sleep,
            on_event=self.events.append,
            # The same code; a unit test starts no process.
            renderer=Templar(),
            **settings,
        )
        return run_playbook(parse_playbook(text, "gate.yaml", read=read), self.guest, context)


def echo(ran: Ran) -> Answer | None:
    """Just enough of a shell for tests: `echo WORDS`, `exit N`, `lose`, `hang`."""
    if ran.line == "lose":
        from ktrdr_vm.errors import GuestError

        return GuestError("the connection to the guest was lost", hint="check console.log")
    if ran.line == "hang":
        return GuestTimeout("the command did not end", hint="-")
    if ran.line.startswith("exit "):
        return GuestResult(int(ran.line.split()[1]), b"", b"it went wrong\n")
    if ran.line.startswith("echo "):
        return GuestResult(0, ran.line.removeprefix("echo ").encode() + b"\n", b"")
    return None


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(FakeGuest(echo), tmp_path)
