"""A report that its owner changed ends no command as a run that passed, and is no run of another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.reader import read_report, read_stored
from ktrdr_vm.host.runs import parse_document
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import RunReport

RUN = "20260101T000000Z-aaaa"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    path = tmp_path / "runs/one" / RUN
    path.mkdir(parents=True)
    (path.parent / "latest").symlink_to(RUN)
    return path


def write(run: Path, **fields: object) -> None:
    report = RunReport("one", RUN, "p", "sandbox", "", "", "failed", 1, "2026-01-01T00:00:00Z", 1.0)
    (run / "report.json").write_text(json.dumps(json.loads(render_report_json(report)) | fields))


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("failed", 0),
        ("failed", 256),
        ("error", 512),
        ("failed", -256),
        ("passed", 1),
        ("escalated", 0),
        ("failed", 10**60),
    ],
)
def test_a_code_that_no_run_has_is_refused(run: Path, outcome: str, code: int) -> None:
    """A process keeps eight bits of its exit code: with 256, `report` ended as for a run that passed."""
    write(run, outcome=outcome, exit_code=code)
    for read in (read_report, read_stored):
        with pytest.raises(UsageError):
            read(run)
    for words in (["report", "one"], ["report", "one", "--json"]):
        found = CliRunner().invoke(cli, words, standalone_mode=False)
        assert isinstance(found.exception, UsageError)


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("passed", 5), ("failed", 1), ("interrupted", 130)])
def test_a_code_of_a_run_is_taken(run: Path, outcome: str, code: int) -> None:
    write(run, outcome=outcome, exit_code=code)
    assert read_report(run).exit_code == read_stored(run)["exit_code"] == code


@pytest.mark.parametrize("words", [["report", "one", "--json"], ["egress", "suggest", "one"], ["report", "one"]])
def test_the_report_of_another_run_is_refused_in_every_form(run: Path, words: list[str]) -> None:
    """As JSON, and for suggestions, it was shown as that of this run."""
    write(run, run_id="20260102T000000Z-bbbb")
    found = CliRunner().invoke(cli, words, standalone_mode=False)
    assert isinstance(found.exception, UsageError) and "another run" in found.exception.message


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[]", "\0"],
)
def test_what_readers_understand_differently_is_no_document(text: str) -> None:
    """`report --json` printed `NaN`, which is no JSON, and of a key that is there twice one reader takes the first."""
    with pytest.raises(UsageError, match="not a document of a run"):
        parse_document(text.encode(), "report.json")
