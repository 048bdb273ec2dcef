"""Where a run is, from its events."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.monitoring.top.progress import TAIL, Progress, read_progress, sum_up
from ktrdr_vm.monitoring.top.streams import Reader, Stream


def event(event_: str, **more: Any) -> dict[str, Any]:
    return {"event": event_, "time": "2026-01-02T03:04:05.678Z", **more}


BEFORE = [
    event("phase_started", phase="create"),
    event("resource", kind="overlay", name="one", verb="changed", duration_s=0.31),
    event("phase_finished", phase="create", outcome="ok", duration_s=1.0),
    event("phase_started", phase="gate startability"),
    event("task_started", gate="startability", task="start all services"),
]


def test_a_run_is_at_its_last_task() -> None:
    assert sum_up(BEFORE) == Progress(
        "gate startability",
        "startability",
        "start all services",
        lines=("03:04:05 phase create", "03:04:05 changed overlay one  0.3 s", "03:04:05 phase gate startability"),
    )


def test_a_phase_that_has_ended_is_not_shown_as_the_current_one() -> None:
    found = sum_up([*BEFORE, event("phase_finished", phase="gate startability", outcome="ok")])
    assert (found.phase, found.gate, found.task) == ("", "", "")
    assert sum_up([*BEFORE, event("run_finished", outcome="failed")]).outcome == "failed"


def test_what_a_guest_wrote_does_not_reach_the_terminal() -> None:
    found = sum_up(
        [
            event("task_finished", gate="g", task="\x1b]0;owned\x07\n", outcome="passed", duration_s="x"),
            event("phase_started"),
        ]
    )
    assert found.lines == ("03:04:05 passed \\x1b]0;owned\\x07\\n", "03:04:05 phase ")


def test_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    run = home.run("one", "20260102T030405Z-abcd")
    run.mkdir(parents=True)
    filler = json.dumps(event("task_finished", task="x" * 400, outcome="passed"))
    lines = [filler] * (2 * TAIL // len(filler)) + ["no json", json.dumps([1]), *map(json.dumps, BEFORE)]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    found = read_progress(home, "one", run.name)
    assert found.task == "start all services" and len(found.lines) == 200
    assert read_progress(home, "one", "20260102T030405Z-0000") == Progress()


def test_what_a_stream_does_is_the_nearest_that_is_known() -> None:
    stream = Stream("one", "running")
    assert stream.doing == "running"
    stream = replace(stream, gates="2 passed")
    assert stream.doing == "2 passed"
    stream = replace(stream, progress=Progress(outcome="failed"))
    assert stream.doing == "failed"
    stream = replace(stream, progress=replace(stream.progress, phase="destroy"))
    assert stream.doing == "destroy"
    stream = replace(stream, progress=replace(stream.progress, gate="unit", task="tests"))
    assert stream.doing == "unit: tests"


def test_cores_are_those_in_use_since_the_last_reading(tmp_path: Path) -> None:
    times = iter([10.0, 14.0, 16.0])
    reader = Reader(Home(tmp_path), Libvirt(), clock=lambda: next(times))
    assert reader._measure("one", 100.0) is None
    assert reader._measure("one", 106.0) == 1.5
    # A VM that was started again begins at zero.
    assert reader._measure("one", 3.0) is None
