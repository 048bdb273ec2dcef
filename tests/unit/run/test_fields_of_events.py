"""The fields of events.jsonl and the names of the files of a run are those of the page about a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_endings import destroyed, make_run

from ktrdr_vm.evidence.run_directory import make_run_id
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.vm import Stage

__all__ = ["destroyed"]

OURS = {"time", "instance_id", "run_id", "event", "revision"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]) -> Path:
    """A run that ended by a bug."""

    def provision(_: Stage, recorder: Recorder) -> None:
        with recorder.phase("create"):
            recorder.on_resource("tap", "kv1", "changed", 1.0)
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Stage, "provision", provision)
    assert make_run(tmp_path).execute().exit_code == 4
    return (tmp_path / "runs/one/latest").resolve()


def test_each_event_has_its_fields(directory: Path) -> None:
    rows: list[dict[str, Any]] = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    found = {row["event"]: (row.keys() - OURS) for row in rows}
    assert all(row.keys() >= OURS for row in rows) and {row["run_id"] for row in rows} == {directory.name}
    assert found == {
        "run_started": {"profile", "plan_digest"},
        "phase_started": {"phase"},
        "resource": {"kind", "name", "verb", "duration_s"},
        "phase_finished": {"phase", "outcome", "duration_s"},
        "unexpected": {"trace"},
        "run_finished": {"outcome", "exit_code", "residue"},
    }
    # Without a network there is no revision.
    assert {row["revision"] for row in rows} == {""}
    [trace] = [row["trace"] for row in rows if row["event"] == "unexpected"]
    assert "ZeroDivisionError: a bug" in trace[-1]


def test_the_report_has_its_parts_and_the_bundle_is_empty(directory: Path) -> None:
    report = json.loads((directory / "report.json").read_text())
    assert (report["schema_version"], report["outcome"], report["mode"]) == (1, "error", "sandbox")
    assert "ZeroDivisionError" in report["message"] and "report it" in report["hint"]
    assert [(row["kind"], row["name"], row["verb"]) for row in report["resources"]] == [("tap", "kv1", "changed")]
    assert next((row["name"], row["outcome"]) for row in report["phases"]) == ("create", "failed")
    assert report["host"] == {"accelerator": "tcg", "accelerator_reason": "test"}
    assert {"report.html", "junit.xml", "events.jsonl", "plan.json", "artifacts", "bundle"} <= {
        path.name for path in directory.iterdir()
    }
    assert list((directory / "bundle").iterdir()) == []
    assert json.loads((directory / "plan.json").read_text())["instance_id"] == "one"


def test_a_run_id_is_a_time_and_chance() -> None:
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", make_run_id())
