"""The metrics are of all users of the host: no report that its owner changed ends them, or speaks for another."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.history import read_rows
from ktrdr_vm.evidence.reader import read_report
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.monitoring.disk import measure_disk
from ktrdr_vm.monitoring.metrics import Metrics, _add_run
from ktrdr_vm.report.json import make_report_document
from ktrdr_vm.report.model import GateResult, RunReport

RUN = "20260101T000000Z-aaaa"
BEGAN = "2026-01-01T00:00:00Z"


def write_report(home: Home, change: Callable[[dict[str, Any]], object]) -> FinishedRun:
    gates = (GateResult("unit", "passed", BEGAN, 1.0, ()),)
    content = make_report_document(RunReport("one", RUN, "p", "sandbox", "", "", "passed", 0, BEGAN, 1.0, gates=gates))
    content = json.loads(json.dumps(content))
    change(content)
    run = FinishedRun(home.run("one", RUN))
    run.path.mkdir(parents=True)
    (run.path / "report.json").write_text(json.dumps(content))
    return run


def render(run: FinishedRun) -> str:
    metrics = Metrics()
    _add_run(metrics, run)
    return generate_latest(metrics.registry).decode()


@pytest.mark.parametrize("name", ["\ud800", "a\nktrdr_vm_guard_up 1", '"', "\x1b[2J", "x" * 100_000])
def test_no_text_of_a_report_ends_or_forges_the_metrics(tmp_path: Path, name: str) -> None:
    text = render(write_report(Home(tmp_path), lambda report: report["gates"][0].update(name=name)))
    assert 'ktrdr_vm_run_outcome{environment="sandbox",instance_id="one",outcome="passed"} 1.0' in text
    assert len(text) < 20_000 and "\x1b" not in text
    assert [line for line in text.split("\n") if line.startswith("ktrdr_vm_guard_up")] == []


def test_a_report_has_no_more_series_than_a_run_has_gates(tmp_path: Path) -> None:
    def add(report: dict[str, Any]) -> None:
        report["gates"] = [report["gates"][0] | {"name": f"g{number}"} for number in range(5000)]

    assert render(write_report(Home(tmp_path), add)).count("gate_passed{") <= 200


@pytest.mark.parametrize("change", [{"instance_id": "another"}, {"run_id": "20270101T000000Z-bbbb"}])
def test_a_report_speaks_for_its_own_run_only(tmp_path: Path, change: dict[str, str]) -> None:
    run = write_report(Home(tmp_path), lambda report: report.update(change))
    assert "another" not in render(run)
    with pytest.raises(UsageError, match="says that it is of another run"):
        read_report(run.path)
    assert read_rows(Home(tmp_path)) == ([], [str(run.path)])


def test_the_disk_of_an_instance_is_that_of_its_own_files(tmp_path: Path) -> None:
    """What it mounts can be any folder of a user, with any number of files."""
    paths = Home(tmp_path).instance("one")
    (paths.mounts / "0").mkdir(parents=True)
    for place in (paths.mounts / "0/data", paths.directory / "overlay.qcow2"):
        place.write_bytes(os.urandom(65536))
    (paths.directory / "link").symlink_to(paths.mounts / "0/data")
    assert measure_disk(Home(tmp_path).instance("template--of-a-build")) == 0
    assert measure_disk(paths) == (paths.directory / "overlay.qcow2").stat().st_blocks * 512
