"""`runs` shows the kept runs that match, its measures first, and names none that cannot be read as one that passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktrdr_vm.cli.main import cli
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import RunOutcome, RunReport

RUNS: tuple[tuple[str, str, str, str, RunOutcome], ...] = (
    ("demo", "20260101", "agent", "main", "failed"),
    ("demo", "20260102", "agent", "main", "passed"),
    ("other", "20260103", "full", "feature", "passed"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    for instance_id, run_id, profile, branch, outcome in RUNS:
        folder = tmp_path / "runs" / instance_id / run_id
        folder.mkdir(parents=True)
        report = RunReport(
            instance_id, run_id, profile, "sandbox", "d", "i", outcome, 0 if outcome == "passed" else 1, f"2026-01-0{run_id[-1]}T00:00:00Z", 60.0,
            base_ref=branch, base_commit="c" * 40,
        )  # fmt: skip
        (folder / "report.json").write_text(render_report_json(report))
    (tmp_path / "runs/demo/latest").symlink_to("20260102")
    (tmp_path / "runs/demo/20260104").mkdir()
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["runs", *words], standalone_mode=False)


def list_runs(*words: str) -> list[str]:
    return [one["run_id"] for one in json.loads(run(*words, "--json").stdout)["runs"]]


@pytest.mark.usefixtures("home")
def test_runs_are_chosen_by_instance_branch_and_profile() -> None:
    assert list_runs() == ["20260101", "20260102", "20260103"]
    assert list_runs("demo") == ["20260101", "20260102"]
    assert list_runs("--branch", "feature") == ["20260103"]
    assert list_runs("--profile", "agent") == ["20260101", "20260102"]


def test_the_measures_come_first_and_what_cannot_be_read_is_said(home: Path) -> None:
    said = run()
    lines = said.stdout.splitlines()
    assert lines[0].split("  ")[0] == "first runs that pass" and "1 of 2" in lines[0]
    assert lines[3].startswith("passed") and "20260103" in lines[3]
    assert "1 runs have no report" in said.stderr
    assert json.loads(run("--json").stdout)["unread"] == [str(home / "runs/demo/20260104")]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("now", "before", "code"), [("20260101", "20260102", 1), ("20260102", "20260101", 0)])
def test_a_comparison_ends_with_1_if_something_is_worse(now: str, before: str, code: int) -> None:
    words = ["report", "demo", "--run", now, "--against", before]
    assert CliRunner().invoke(cli, words, standalone_mode=False).return_value == code


def test_it_writes_a_page(home: Path) -> None:
    assert "page" in run("demo", "--html", str(home / "page.html")).stdout
    assert "Runs: demo" in (home / "page.html").read_text()


def test_without_runs_there_is_nothing_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "none"))
    assert run().stdout.splitlines()[0].split()[-3:] == ["0", "of", "0"]
    assert list_runs("demo") == []
