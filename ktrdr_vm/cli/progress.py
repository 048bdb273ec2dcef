"""Progress of a run and its summary, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ktrdr_vm.cli.progress_printer import Span, escape_span, make_printer
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.instance import Verb
from ktrdr_vm.run.listener import Listener

if TYPE_CHECKING:
    from ktrdr_vm.report.model import GateResult, RunReport

# Characters and lines that are shown of what `debug` says.
_MOST_MESSAGE, _MOST_LINES = 8192, 40
_INDENT = " " * 10
_STYLES = {
    "ok": "green", "changed": "yellow", "removed": "yellow", "absent": "dim", "failed": "bold red",
    "passed": "green", "skipped": "dim", "ignored": "magenta", "rescued": "magenta",
}  # fmt: skip


class TerminalListener(Listener):
    """A line for each event; on a terminal also a spinner with the current step."""

    def __init__(self, gathered: Gathered) -> None:
        self._printer = make_printer(sys.stderr)
        self._began = time.monotonic()
        facts, plan = gathered.plan.facts, gathered.plan
        self._printer.print(
            (f"{plan.identity.instance_id}  profile {plan.profile.name}  plan {plan.digest[:12]}", "bold")
        )
        if facts.accelerator == "tcg":
            self._printer.print(
                (
                    "  warning: software emulation (TCG), slower and with longer time limits:"
                    f" {gathered.accelerator.reason}",
                    "yellow",
                )
            )

    def __enter__(self) -> TerminalListener:
        self._printer.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._printer.end()

    def phase(self, name: str) -> None:
        self._printer.work_on(name)
        self._printer.print(_phase_span(name, self._began))

    def resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        self._printer.print(*_resource_line(kind, name, verb, seconds))

    def note(self, text: str) -> None:
        self._printer.print((_INDENT, ""), escape_span(text, "dim"))

    def gate_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "task_started":
            self._printer.work_on(f"{event.get('gate')}: {event.get('task', '')}")
        if line := _task_line(event):
            self._printer.print(*line)

    def output(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            self._printer.print((f"{_INDENT}│ ", ""), escape_span(line))


class EventPrinter:
    """Prints the events of a run that happens elsewhere, as `TerminalListener` prints those of a run here."""

    def __init__(self) -> None:
        self._printer = make_printer(sys.stderr)
        self._began = time.monotonic()

    def print(self, text: str, style: str = "dim") -> None:
        self._printer.print((_INDENT, ""), escape_span(text, style))

    def on_event(self, event: Mapping[str, Any]) -> None:
        """An event that `places.follow.clean_event` has checked."""
        if event["event"] == "phase_started":
            self._printer.print(_phase_span(str(event.get("phase", "")), self._began))
        elif event["event"] == "resource" and event.get("verb") in _STYLES:
            self._printer.print(
                *_resource_line(
                    str(event.get("kind", "")), str(event.get("name", "")), event["verb"], event["duration_s"]
                )
            )
        elif event["event"] == "note":
            self.print(str(event.get("text", "")))
        elif line := _task_line(event):
            self._printer.print(*line)


def _phase_span(name: str, began: float) -> Span:
    return escape_span(f"{time.monotonic() - began:7.1f}s  {name}", "cyan")


def _resource_line(kind: str, name: str, verb: Verb, seconds: float) -> list[Span]:
    return [
        (_INDENT, ""),
        (f"{verb:<8}", _STYLES[verb]),
        escape_span(f" {kind:<9} {name}"),
        (f"  {seconds:.2f}s", "dim"),
    ]


def _task_line(event: Mapping[str, Any]) -> list[Span]:
    """Empty for an event that no line is for."""
    if event.get("event") != "task_finished":
        return []
    outcome = str(event.get("outcome", ""))
    return [
        (_INDENT, ""),
        escape_span(f"{outcome:<8}", _STYLES.get(outcome, "")),
        escape_span(f" {event.get('task', '')}"),
        (f"  {float(event.get('duration_s', 0)):.1f}s", "dim"),
    ]


def show_gate_event(event: Mapping[str, Any]) -> None:
    """Print the line of a task, for commands other than `apply`."""
    line = _task_line(event)
    if not line:
        return
    printer = make_printer(sys.stderr)
    printer.print(*line)
    if event.get("module") == "debug":
        lines = str(event.get("message", ""))[:_MOST_MESSAGE].splitlines()
        for said in lines[:_MOST_LINES]:
            printer.print((" " * 19, ""), escape_span(said))
        if len(lines) > _MOST_LINES or len(str(event.get("message", ""))) > _MOST_MESSAGE:
            printer.print((" " * 19 + "… (the report has the rest)", "dim"))


def show_gate(result: GateResult, stream: IO[str]) -> None:
    """Print the outcome of a gate in one line."""
    line = f"{result.outcome:<8} gate {result.name}  {result.duration_s:.1f}s  {result.message}"
    make_printer(stream).print(escape_span(line, _STYLES.get(result.outcome, "")))


def show_resource(kind: str, name: str, verb: Verb, seconds: float) -> None:
    """Print the line of a resource, for commands other than `apply`."""
    make_printer(sys.stderr).print(*_resource_line(kind, name, verb, seconds))


def show_report(report: RunReport, directory: Path, stream: IO[str] = sys.stderr) -> None:
    """Print the summary at the end."""
    # Imported here: what is needed at the end would delay the beginning of each run.
    from ktrdr_vm.report.summary import render_summary

    printer = make_printer(stream)
    printer.print()
    for style, text in render_summary(report):
        printer.print((text, style))
    printer.print((f"report   {directory}/report.html", "dim"))
