"""Files of a run that its owner changed: each command that shows them ends as it should, and shows nothing that acts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import RunReport

RUN = "20260101T000000Z-aaaa"
BEGAN = "2026-01-01T00:00:00.000Z"
LINES: list[Any] = [
    {"time": "x"},
    {"time": BEGAN, "kind": 5, "verdict": [], "name": {}, "port": "x", "count": "y"},
    {"time": BEGAN, "instance_id": "one", "kind": "tls", "verdict": "allow", "name": "\x1b[2J\ud800", "port": 1e999},
    {"time": "\x1b[2J", "event": {"a": 1}, "gate": "\ud800", "task": [1]},
    [1],
    None,
]
COMMANDS = [
    ["egress", "log", "one"],
    ["egress", "log", "one", "--denied"],
    ["egress", "log", "one", "--json"],
    ["egress", "log", "one", "--revision", "0f3c5a7e9b1d"],
    ["egress", "suggest", "one"],
    ["events", "one"],
    ["events", "one", "--json"],
    ["logs", "one"],
    ["report", "one"],
    ["report", "one", "--json"],
    ["runs"],
    ["runs", "one", "--json"],
]
GOOD = render_report_json(RunReport("one", RUN, "p", "sandbox", "", "", "passed", 0, BEGAN, 1.0))
REPORTS = [
    GOOD,
    GOOD.replace('"p"', '"\\u001b[2J\\ud800"'),
    '{"egress": 5}',
    "[]",
    '{"schema_version": 1, "exit_code": 1e999, "egress": {"allowed": [5], "denied": {"a": 1}}}',
    "[" * 100_000,
    "\0",
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("report", REPORTS, ids=range(len(REPORTS)))
def test_every_command_ends_with_an_answer_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], report: str
) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    run = tmp_path / "runs/one" / RUN
    run.mkdir(parents=True)
    (run.parent / "latest").symlink_to(RUN)
    (run / "report.json").write_text(report)
    lines = [*map(json.dumps, LINES), "[" * 5000, "\x1b[2J", ""]
    for name in ("egress.jsonl", "events.jsonl", "console.log"):
        (run / name).write_text("\n".join(lines))
    found = CliRunner().invoke(cli, command)
    assert found.exception is None or isinstance(found.exception, SystemExit | KtrdrError), found.exception
    assert "\x1b" not in found.output
