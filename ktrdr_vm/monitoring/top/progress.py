"""How far a run is, from the end of its events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import FinishedRun, find_run
from ktrdr_vm.report.escape import escape_line

# From the end of events.jsonl; a phase has far fewer events than that.
TAIL = 256 * 1024
MAX_LINES = 200
_WIDTH = 500


@dataclass(frozen=True)
class Progress:
    """The current phase, gate and task of a run, each empty if there is none, and its last events as lines."""

    phase: str = ""
    gate: str = ""
    task: str = ""
    outcome: str = ""
    """Of the run, once it has ended."""
    lines: tuple[str, ...] = ()


def read_progress(home: Home, instance_id: str, run_id: str) -> Progress:
    """The progress of a run, `latest` without a run_id. An empty one if there is no such run, or it cannot be read."""
    try:
        with FinishedRun(find_run(home, instance_id, run_id or "latest")).open("events.jsonl") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except (OSError, KtrdrError):
        return Progress()
    # The first may be cut, and is then no JSON.
    return sum_up(event for line in lines if (event := _parse(line)))


def sum_up(events: Iterable[Mapping[str, Any]]) -> Progress:
    """The progress after these events, in their order."""
    phase = gate = task = outcome = ""
    lines: list[str] = []
    for event in events:
        kind = event["event"]
        if kind == "phase_started":
            phase, gate, task = _text(event, "phase"), "", ""
        elif kind == "phase_finished":
            phase = gate = task = ""
        elif kind == "task_started":
            gate, task = _text(event, "gate"), _text(event, "task")
        elif kind == "run_finished":
            outcome = _text(event, "outcome") or "ended"
        if line := describe(event):
            lines.append(line)
    return Progress(phase, gate, task, outcome, tuple(lines[-MAX_LINES:]))


def describe(event: Mapping[str, Any]) -> str:
    """One line for an event, escaped; empty for one that nobody reads."""
    kind = event["event"]
    seconds = event.get("duration_s", 0.0)
    took = (
        f"  {seconds:.1f} s" if isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0.05 else ""
    )
    parts = {
        "phase_started": f"phase {_text(event, 'phase')}",
        "resource": f"{_text(event, 'verb')} {_text(event, 'kind')} {_text(event, 'name')}{took}",
        "task_retried": f"retries {_text(event, 'task')}",
        "task_finished": f"{_text(event, 'outcome')} {_text(event, 'task')}{took}",
        "escalation": f"escalation {_text(event, 'id')} {_text(event, 'state')}",
        "change": f"changes {_text(event, 'part')}",
        "not_fetched": f"not fetched: {_text(event, 'what')}",
        "run_finished": f"the run has ended: {_text(event, 'outcome')}",
    }
    text = parts.get(str(kind), "")
    time = _text(event, "time")[11:19]
    return f"{time} {text}" if text else ""


def _text(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key, "")
    return escape_line(value, limit=_WIDTH) if isinstance(value, str) else ""


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else {}
