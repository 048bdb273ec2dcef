"""Coloured lines and a spinner, on a terminal."""

from __future__ import annotations

import contextlib
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ktrdr_vm.cli.progress_printer import Span
from ktrdr_vm.report.escape import escape


class _Console(Console):
    """Rich raises an error or ends the process if its reader has closed the stream."""

    def print(self, *objects: Any, **options: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalPrinter:
    def __init__(self, stream: IO[str]) -> None:
        self._console = _Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Live | None = None

    def print(self, *spans: Span) -> None:
        self._console.print(Text.assemble(*spans))

    def begin(self) -> None:
        # With a forced colour, the stream may be a file.
        if self._console.is_terminal:
            self._live = Live(make_spinner("starting"), console=self._console, transient=True, refresh_per_second=8)
            self._live.start()

    def work_on(self, step: str) -> None:
        if self._live is not None:
            self._live.update(make_spinner(step))

    def end(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()


def make_spinner(step: str) -> Spinner:
    # As a Text: rich interprets brackets in a plain string as markup, and fails if it is not valid.
    return Spinner("dots", text=Text(escape(step)))
