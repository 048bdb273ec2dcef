"""Lines for a person: plain in a file or a pipe; on a terminal with colour, and with a spinner beneath.

Rich is imported for a terminal only. Its import takes about 20 ms, which agents and pipelines do not need to wait for.
"""

from __future__ import annotations

import contextlib
import os
from typing import IO, Protocol

from ktrdr_vm.report.escape import escape

Span = tuple[str, str]
"""A text and its style in Rich's words, such as `bold red`; empty for the usual one."""


class Printer(Protocol):
    def print(self, *spans: Span) -> None:
        """Print one line. A reader that has closed the stream is no error: a teardown continues without output."""

    def begin(self) -> None:
        """Show the spinner from now on."""

    def work_on(self, step: str) -> None:
        """Name the current step beside the spinner."""

    def end(self) -> None:
        """Remove the spinner."""


def make_printer(stream: IO[str]) -> Printer:
    """The printer for this stream. FORCE_COLOR and TTY_COMPATIBLE override the detection of a terminal."""
    environment = os.environ
    named = environment.get("TTY_COMPATIBLE", "")
    forced = environment.get("FORCE_COLOR")
    if named == "1" or (named != "0" and (bool(forced) if forced is not None else stream.isatty())):
        from ktrdr_vm.cli.progress_terminal import TerminalPrinter

        return TerminalPrinter(stream)
    return _PlainPrinter(stream)


class _PlainPrinter:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def print(self, *spans: Span) -> None:
        with contextlib.suppress(OSError):
            self._stream.write("".join(text for text, _ in spans) + "\n")
            self._stream.flush()

    def begin(self) -> None:
        pass

    def work_on(self, step: str) -> None:
        pass

    def end(self) -> None:
        pass


def escape_span(text: str, style: str = "") -> Span:
    """A text of somebody else, whose control characters are shown as letters."""
    return escape(text), style
