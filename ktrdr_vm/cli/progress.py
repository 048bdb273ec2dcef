"""Progress of a run and its summary, on standard error, with colour on a terminal only."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.instance import Verb
from ktrdr_vm.report.escape import escape
from ktrdr_vm.report.model import GateResult, RunReport
from ktrdr_vm.report.summary import render_summary
from ktrdr_vm.run.listener import Listener

# Characters and lines that are shown of what `debug` says.
_MOST_MESSAGE, _MOST_LINES = 8192, 40
_STYLES = {
    "ok": "green", "changed": "yellow", "removed": "yellow", "absent": "dim", "failed": "bold red",
    "passed": "green", "skipped": "dim", "ignored": "magenta", "rescued": "magenta",
}  # fmt: skip


class _Console(Console):
    """Rich raises an error or ends the process if its reader has closed the stream. A teardown must continue, without
    output."""

    def print(self, *objects: Any, **options: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalListener(Listener):
    """A line for each event; on a terminal also a spinner with the current step."""

    def __init__(self, gathered: Gathered) -> None:
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._live: Live | None = None
        facts, plan = gathered.plan.facts, gathered.plan
        self._line(
            Text(f"{plan.identity.instance_id}  profile {plan.profile.name}  plan {plan.digest[:12]}", style="bold")
        )
        if facts.accelerator == "tcg":
            self._line(
                Text(
                    "  warning: software emulation (TCG), slower and with longer time limits:"
                    f" {gathered.accelerator.reason}",
                    style="yellow",
                )
            )

    def __enter__(self) -> TerminalListener:
        if self._console.is_terminal:
            self._live = Live(_spinner("starting"), console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def phase(self, name: str) -> None:
        if self._live is not None:
            self._live.update(_spinner(name))
        self._line(Text(f"{time.monotonic() - self._began:7.1f}s  {escape(name)}", style="cyan"))

    def resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        self._line(_resource_line(kind, name, verb, seconds))

    def note(self, text: str) -> None:
        self._line(Text(f"          {escape(text)}", style="dim"))

    def gate_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "task_started" and self._live is not None:
            self._live.update(_spinner(f"{event.get('gate')}: {event.get('task', '')}"))
        line = _task_line(event)
        if line is not None:
            self._line(line)

    def output(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            self._line(Text(f"          │ {escape(line)}"))

    def _line(self, text: Text) -> None:
        # The reader may have closed the stream (a closed terminal, `| head`); the run continues to its end.
        with contextlib.suppress(OSError):
            self._console.print(text)


class EventPrinter:
    """Prints the events of a run that happens elsewhere, as `TerminalListener` prints those of a run here."""

    def __init__(self) -> None:
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def print(self, text: str, style: str = "dim") -> None:
        with contextlib.suppress(OSError):
            self._console.print(Text(f"          {escape(text)}", style=style))

    def on_event(self, event: Mapping[str, Any]) -> None:
        """An event that `places.follow.clean_event` has checked."""
        line = None
        if event["event"] == "phase_started":
            line = Text(f"{time.monotonic() - self._began:7.1f}s  {escape(str(event.get('phase', '')))}", style="cyan")
        elif event["event"] == "resource" and event.get("verb") in _STYLES:
            line = _resource_line(
                str(event.get("kind", "")), str(event.get("name", "")), event["verb"], event["duration_s"]
            )
        elif event["event"] == "note":
            line = Text(f"          {escape(str(event.get('text', '')))}", style="dim")
        else:
            line = _task_line(event)
        if line is not None:
            with contextlib.suppress(OSError):
                self._console.print(line)


def _spinner(doing: str) -> Spinner:
    # As a Text: rich interprets brackets in a plain string as markup, and fails if it is not valid.
    return Spinner("dots", text=Text(escape(doing)))


def _resource_line(kind: str, name: str, verb: Verb, seconds: float) -> Text:
    line = Text("          ")
    line.append(f"{verb:<8}", style=_STYLES[verb])
    line.append(f" {escape(kind):<9} {escape(name)}")
    line.append(f"  {seconds:.2f}s", style="dim")
    return line


def _task_line(event: Mapping[str, Any]) -> Text | None:
    if event.get("event") != "task_finished":
        return None
    outcome = str(event.get("outcome", ""))
    line = Text("          ")
    line.append(f"{outcome:<8}", style=_STYLES.get(outcome, ""))
    line.append(f" {escape(str(event.get('task', '')))}")
    line.append(f"  {float(event.get('duration_s', 0)):.1f}s", style="dim")
    return line


def show_gate_event(event: Mapping[str, Any]) -> None:
    """Print the line of a task, for commands other than `apply`."""
    line = _task_line(event)
    if line is None:
        return
    console = _Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(line)
    if event.get("module") == "debug":
        lines = str(event.get("message", ""))[:_MOST_MESSAGE].splitlines()
        for said in lines[:_MOST_LINES]:
            console.print(Text(f"                   {escape(said)}"))
        if len(lines) > _MOST_LINES or len(str(event.get("message", ""))) > _MOST_MESSAGE:
            console.print(Text("                   … (the report has the rest)", style="dim"))


def show_gate(result: GateResult, stream: IO[str]) -> None:
    """Print the outcome of a gate in one line."""
    line = Text(
        f"{result.outcome:<8} gate {result.name}  {result.duration_s:.1f}s  {escape(result.message)}",
        style=_STYLES.get(result.outcome, ""),
    )
    _Console(file=stream, highlight=False, soft_wrap=True).print(line)


def show_resource(kind: str, name: str, verb: Verb, seconds: float) -> None:
    """Print the line of a resource, for commands other than `apply`."""
    _Console(stderr=True, highlight=False, soft_wrap=True).print(_resource_line(kind, name, verb, seconds))


def show_report(report: RunReport, directory: Path, stream: IO[str] = sys.stderr) -> None:
    """Print the summary at the end."""
    console = _Console(file=stream, highlight=False, soft_wrap=True)
    console.print()
    for style, text in render_summary(report):
        console.print(Text(text, style=style))
    console.print(Text(f"report   {directory}/report.html", style="dim"))
