"""Guests without a VM: one that is answered by a function, one that is a folder of this host."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from ktrdr_vm.guest import commits
from ktrdr_vm.guest.protocol import Guest, GuestRefusedError, GuestResult

_BUNDLES = ("/var/tmp/workspace.bundle", commits._BUNDLE)
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
class FakeGuest(Guest):
    """Commands are answered by a function, guest-side programs run in this process. `answer` gives the result of a command, or an error to raise."""

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


class RefusingGuest(Guest):
    """Every call fails the test. What a test needs of a guest, it adds."""

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
        self._refuse("run", command)

    def upload(
        self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600
    ) -> None:
        self._refuse("upload", destination)

    def send(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        *,
        environment: Mapping[str, str] | None = None,
        become: bool = False,
        timeout: float = 600,
    ) -> None:
        self._refuse("send", command)

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        self._refuse("download", path)

    def _refuse(self, what: str, said: object) -> NoReturn:
        raise AssertionError(f"{type(self).__name__}.{what} is not expected: {said!r:.200}")


class FolderGuest(RefusingGuest):
    """A guest whose `/workspace` is a folder of this host: scripts run here. `bundle` stands for the bundles that it is
    sent and asked for; `lie` replaces what it answers with."""

    def __init__(self, folder: Path, bundle: Path | None = None) -> None:
        self.folder = folder
        self.bundle = bundle or folder.with_suffix(".bundle")
        self.lie: Callable[[bytes], bytes] = lambda raw: raw

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
        given = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", **(environment or {})}
        if "TARGET" in given:
            given["TARGET"] = self.place(given["TARGET"])
        if isinstance(command, str):
            for name in _BUNDLES:
                command = command.replace(name, str(self.bundle))
        words = ["sh", "-c", command] if isinstance(command, str) else command
        done = subprocess.run(words, env=given, input=stdin, capture_output=True, check=False, timeout=60)
        return GuestResult(done.returncode, done.stdout, done.stderr)

    def place(self, path: str) -> str:
        return str(self.folder) + path.removeprefix("/workspace")

    def upload(
        self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600
    ) -> None:
        assert destination in _BUNDLES, destination
        self.bundle.write_bytes(source.read())

    def send(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        *,
        environment: Mapping[str, str] | None = None,
        become: bool = False,
        timeout: float = 600,
    ) -> None:
        assert not isinstance(command, str)
        subprocess.run([*command[:-1], self.place(command[-1])], input=source.read(), check=True, timeout=60)

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        if not self.bundle.exists():
            raise GuestRefusedError("no such file", hint="x")
        raw = self.lie(self.bundle.read_bytes())
        if len(raw) > max_bytes:
            raise GuestRefusedError("the guest sent more bytes than are allowed", hint="x")
        return sink.write(raw)
