"""What gates, workspace and artifacts need of a guest, without saying how it is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ktrdr_vm.errors import GuestError


class GuestTimeout(GuestError):
    """A command in the guest did not end within its limit, and was killed as well as the host can."""


class GuestRefusedError(GuestError):
    """The guest is there, but what was asked of it cannot be: no such file, no right, too many bytes, a bad name."""


@dataclass(frozen=True)
class GuestResult:
    """How a command in the guest ended. Output is cut at the limit given, and `truncated` says so."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    left_open: bool = False
    """A process that the command started went on printing after its end; what it said from then on is not kept."""


class Guest(Protocol):
    """What gates, workspace and artifacts need of a guest. `SshGuest` is the real one; tests bring their own."""

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
        """Run a list of words, or a line for /bin/sh. GuestTimeout when `timeout` seconds pass, GuestError when the guest is lost.

        `environment` never stands in an argv. `become` runs as root.
        """
        ...

    def upload(self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600) -> None:
        """Write a file in the guest, atomically: beside it first, then renamed."""
        ...

    def send(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        *,
        environment: Mapping[str, str] | None = None,
        become: bool = False,
        timeout: float = 600,
    ) -> None:
        """Run a command that reads `source` as it comes. GuestError when it fails."""
        ...

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        """Copy a regular file out of the guest; returns its bytes. GuestError when larger than `max_bytes`, or no regular file."""
        ...
