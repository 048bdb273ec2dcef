"""The interface to a guest that gates, workspace and artifacts use, independent of the transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ktrdr_vm.errors import GuestError

ENVIRONMENT_FILE = "/etc/ktrdr/environment"
"""A shell's `export` of each variable of the instance, with its exact value."""


class GuestTimeout(GuestError):
    """A command in the guest exceeded its time limit, and the host tried to kill it."""


class GuestRefusedError(GuestError):
    """The guest answers, but the request failed: no such file, no permission, too many bytes, an invalid name."""


@dataclass(frozen=True)
class GuestResult:
    """The result of a command in the guest. `truncated` is True if the output was cut at the limit."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    left_open: bool = False
    """A process that the command started went on printing after its end; what it said from then on is not kept."""


class Guest(Protocol):
    """The interface to a guest. `SshGuest` implements it; tests have fakes."""

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
        """Run a list of words, or a line for /bin/sh. GuestTimeout after `timeout` seconds, GuestError if the guest is
        lost.

        `environment` is never in an argv. `become` runs as root.
        """
        ...

    def upload(
        self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600
    ) -> None:
        """Write a file in the guest, atomically: a temporary file is renamed."""
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
        """Run a command with `source` streamed to its standard input. GuestError if it fails."""
        ...

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        """Copy a regular file out of the guest; returns its bytes. GuestError if it is larger than `max_bytes` or not a
        regular file."""
        ...
