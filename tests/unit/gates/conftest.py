"""A guest without a machine: commands are answered by a function, our guest-side programs run in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.guest.protocol import GuestRefusedError, GuestResult, GuestTimeout
from ktrdr_vm.report.model import GateResult

Answer = GuestResult | Exception


@dataclass
class Ran:
    """One command as it reached the guest."""

    command: Sequence[str] | str
    stdin: bytes
    environment: Mapping[str, str]
    chdir: str | None
    become: bool
    timeout: float

    @property
    def line(self) -> str:
        return self.command if isinstance(self.command, str) else " ".join(self.command)


@dataclass
class FakeGuest:
    """Implements `Guest`. `answer` gives the result of a command, or an error to raise."""

    answer: Callable[[Ran], Answer | None] = lambda ran: None
    ran: list[Ran] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        chdir: str | None = None,
        become: bool = False,
        max_output: int = 10 * 1024 * 1024,
        on_output: Callable[[bytes], None] | None = None,
    ) -> GuestResult:
        ran = Ran(command, stdin, dict(environment or {}), chdir, become, timeout)
        self.ran.append(ran)
        if list(command) == ["python3", "-I", "-"] and self.answer(ran) is None:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(stdin.decode(), "guest-side", "exec"), {"__name__": "guest_side"})
            return GuestResult(0, printed.getvalue().encode(), b"")
        answered = self.answer(ran)
        if isinstance(answered, Exception):
            raise answered
        result = answered or GuestResult(0, b"", b"")
        if on_output is not None:
            on_output(result.stdout)
        cut = len(result.stdout) > max_output
        return GuestResult(result.exit_code, result.stdout[:max_output], result.stderr[:max_output], cut)

    def upload(
        self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600
    ) -> None:
        Path(destination).write_bytes(source.read())

    def send(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        *,
        environment: Mapping[str, str] | None = None,
        become: bool = False,
        timeout: float = 600,
    ) -> None:
        self.run(command, timeout=timeout, stdin=source.read(), environment=environment, become=become)

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        if path not in self.files:
            raise GuestRefusedError("reading from the guest failed: No such file", hint="-")
        if len(self.files[path]) > max_bytes:
            raise GuestRefusedError("too many bytes", hint="-")
        return sink.write(self.files[path])


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
