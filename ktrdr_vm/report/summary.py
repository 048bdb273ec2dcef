"""The summary at the end of a run: outcome first, then failures with their reasons, denied destinations, residue.

Lines have the name of a style: the command line adds colours, a log prints the plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ktrdr_vm.report.escape import escape_line, escape_text
from ktrdr_vm.report.junit_results import TestSummary
from ktrdr_vm.report.model import Denial, GateResult, RunReport, TaskResult, Verification

Style = Literal["good", "bad", "warn", "dim", "title", "plain"]

_STYLES: dict[str, Style] = {
    "passed": "good",
    "ok": "good",
    "changed": "good",
    "failed": "bad",
    "error": "bad",
    "skipped": "dim",
    "ignored": "warn",
    "rescued": "warn",
    "escalated": "warn",
    "interrupted": "warn",
    "timeout": "bad",
}
_WIDTH = 56
_TAIL_LINES = 12
_MAX_DENIED = 20
_LAST_WORDS = 3


@dataclass(frozen=True)
class SummaryLine:
    """One line, escaped. `indent` is in steps of two spaces."""

    text: str
    style: Style = "plain"
    indent: int = 0

    def __str__(self) -> str:
        return "  " * self.indent + self.text


# The names of these styles in rich.
_PAINT: dict[Style, str] = {
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "dim": "dim",
    "title": "bold",
    "plain": "",
}


def render_summary(report: RunReport) -> tuple[tuple[str, str], ...]:
    """(style, text) for each line; the styles are rich's."""
    return tuple((_PAINT[line.style], str(line)) for line in make_summary(report))


def render_summary_text(report: RunReport) -> str:
    """The summary as plain text."""
    return "\n".join(str(line) for line in make_summary(report)) + "\n"


def make_summary(report: RunReport) -> tuple[SummaryLine, ...]:
    return tuple(_lines(report))


def _lines(report: RunReport) -> Iterator[SummaryLine]:
    title = (
        f"{report.outcome.upper()}  {report.instance_id}  ·  profile {report.profile}  · "
        f" {format_duration(report.duration_s)}"
    )
    yield SummaryLine(escape_line(title), _STYLES[report.outcome])
    for text in report.first_lines:
        yield SummaryLine(escape_line(text), "warn")
    if report.message:
        yield SummaryLine(escape_line(report.message), "bad", 1)
    if report.hint:
        yield SummaryLine(escape_line(report.hint), "plain", 1)
    if report.phases:
        timed = [
            f"{phase.name} {format_duration(phase.duration_s)}{' FAILED' if phase.outcome == 'failed' else ''}"
            for phase in report.phases
        ]
        yield SummaryLine(escape_line("  ·  ".join(timed)), "dim", 1)
    for gate in report.gates:
        yield from _gate(gate)
    if report.workload is not None:
        workload = report.workload
        yield SummaryLine(
            _row(f"workload {' '.join(workload.command)}", workload.outcome, workload.duration_s),
            _STYLES[workload.outcome],
        )
        if workload.outcome != "passed":
            yield SummaryLine(workload.ended, "bad", 1)
            yield from _tail(workload.stderr or workload.stdout, 2)
    if report.verification is not None:
        yield SummaryLine(escape_line(describe_verification(report.verification)), _STYLES[report.verification.outcome])
    yield from _network(report)
    for asked in report.escalations:
        shown = f"escalation  {asked.id} {asked.kind} {asked.state}: {asked.blocked}"
        yield SummaryLine(escape_line(shown, limit=200), "warn" if asked.state == "pending" else "plain")
    for one in report.tests:
        yield SummaryLine(escape_line(f"tests  {describe_tests(one)}"), "bad" if one.failed or one.problem else "title")
    if report.artifacts:
        kept = [artifact for artifact in report.artifacts if not artifact.refused]
        refused = [artifact for artifact in report.artifacts if artifact.refused]
        yield SummaryLine(
            f"artifacts  {len(kept)} files, {format_bytes(sum(artifact.size for artifact in kept))}", "title"
        )
        for artifact in refused[:_MAX_DENIED]:
            yield SummaryLine(escape_line(f"refused  {artifact.source}: {artifact.refused}"), "warn", 1)
    for commits in report.commits:
        shown = f"commits  {commits.ref} at {commits.commit[:12]}, {len(commits.changed)} paths changed"
        yield SummaryLine(escape_line(shown), "title")
    for item in report.residue:
        yield SummaryLine(escape_line(f"residue: {item}"), "bad")
    if report.kept:
        yield SummaryLine("kept: the instance still exists", "warn")
    elif not report.residue:
        yield SummaryLine("residue: none", "good")


def find_last_words(task: TaskResult) -> str:
    """The last lines of a container that ended or is unhealthy, which explain the failed task."""
    for attachment in task.evidence:
        lines = [line for line in attachment.text.splitlines() if line.strip()]
        ended_well = bool(lines) and lines[0].startswith("state: exited, exit code 0")
        ill = (
            bool(lines)
            and not ended_well
            and any(word in lines[0] for word in ("exited", "restarting", "dead", "unhealthy"))
        )
        if ill and attachment.title.startswith("container ") and "last lines:" in lines:
            return "\n".join(lines[lines.index("last lines:") + 1 :][-_LAST_WORDS:])
    return ""


def describe_tests(file: TestSummary) -> str:
    """The results in one JUnit file, or the reason why it was not counted."""
    counted = {"passed": file.passed, "failed": file.failures, "error": file.errors, "skipped": file.skipped}
    counts = [f"{count} {outcome}" for outcome, count in counted.items() if count]
    return f"{file.path}: {', '.join(counts) or 'no case'}{f'; {file.problem}' if file.problem else ''}"


def describe_verification(verification: Verification) -> str:
    """The verdict of the verification, with its commit and VM."""
    where = "a fresh VM" if verification.mode == "fresh" else "the workload's own VM (weaker)"
    why = f": {verification.message}" if verification.message else ""
    return f"verification  {verification.outcome}  {verification.commit[:12]} in {where}{why}"


def _gate(gate: GateResult) -> Iterator[SummaryLine]:
    yield SummaryLine(
        _row(f"gate {gate.title}", gate.outcome, gate.duration_s),
        "title" if gate.outcome == "passed" else _STYLES[gate.outcome],
    )
    for task in gate.tasks:
        note = f" after {task.attempts} attempts" if task.attempts > 1 and task.outcome in ("ok", "changed") else ""
        yield SummaryLine(_row(task.name, task.outcome + note, task.duration_s), _STYLES[task.outcome], 1)
        if task.outcome == "failed":
            yield from _failure(task)
        elif task.outcome in ("ignored", "rescued"):
            yield SummaryLine(escape_line(task.message, limit=200), "warn", 2)
    if gate.message and all(task.outcome != "failed" for task in gate.tasks):
        yield SummaryLine(escape_line(gate.message), _STYLES[gate.outcome], 1)


def _failure(task: TaskResult) -> Iterator[SummaryLine]:
    yield SummaryLine(escape_line(task.message), "bad", 2)
    if task.where:
        yield SummaryLine(escape_line(task.where), "dim", 2)
    yield from _tail(task.stderr or task.stdout, 3)
    for attachment in task.evidence:
        yield SummaryLine(escape_line(attachment.title), "title", 2)
        yield from _tail(attachment.text, 3)


def _tail(text: str, indent: int) -> Iterator[SummaryLine]:
    lines = escape_text(text).strip("\n").replace("\t", "    ").split("\n") if text.strip() else []
    if len(lines) > _TAIL_LINES:
        yield SummaryLine(f"… {len(lines) - _TAIL_LINES} earlier lines", "dim", indent)
    for line in lines[-_TAIL_LINES:]:
        yield SummaryLine(line if len(line) <= 200 else f"{line[:200]}…", "plain", indent)


def _network(report: RunReport) -> Iterator[SummaryLine]:
    reached = sum(allowance.count for allowance in report.allowed)
    refused = sum(denial.count for denial in report.denied)
    traffic = sum(allowance.bytes_in + allowance.bytes_out for allowance in report.allowed)
    text = (
        f"network  {reached} allowed to {len(report.allowed)} destinations ({format_bytes(traffic)}), {refused} denied"
    )
    yield SummaryLine(text, "title")
    for allowance in report.allowed[:_MAX_DENIED]:
        yield SummaryLine(
            escape_line(f"allowed  {_place(allowance.host, allowance.address, allowance.port)}  x{allowance.count}"),
            "good",
            1,
        )
    for denial in report.denied[:_MAX_DENIED]:
        yield SummaryLine(escape_line(f"denied   {describe_denial(denial)}"), "warn", 1)
    if len(report.denied) > _MAX_DENIED:
        yield SummaryLine(f"… and {len(report.denied) - _MAX_DENIED} more, all in egress.jsonl", "dim", 1)


def describe_denial(denial: Denial) -> str:
    """Destination, count, rule, and the task at that time."""
    during = f"  during {denial.during}" if denial.during else ""
    return f"{_place(denial.host, denial.address, denial.port)}  x{denial.count}  {denial.rule}{during}"


def _place(host: str, address: str, port: int) -> str:
    name = host or address or "?"
    shown = f"{name}:{port}" if port else name
    return f"{shown} ({address})" if host and address and host != address else shown


def _row(name: str, outcome: str, seconds: float) -> str:
    shown = escape_line(name, limit=_WIDTH)
    return f"{outcome:<8} {shown:<{_WIDTH}} {format_duration(seconds):>9}"


def format_duration(seconds: float) -> str:
    """`0.4 s`, `71 s`, `3 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def format_bytes(count: int) -> str:
    """`17 B`, `3.2 kB`, `1.4 MB`: powers of a thousand, as usual for networks."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
