"""`verify`: the report of a judged commit, and its attestation, which is written only with a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_endings import destroyed, make_run

from ktrdr_vm.errors import GuestError, HostError
from ktrdr_vm.evidence.attestation import check_attestation
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.host.paths import Home
from ktrdr_vm.inputs.resolve import Base
from ktrdr_vm.report.model import GateOutcome, GateResult
from ktrdr_vm.run import run as module
from ktrdr_vm.run.listener import Listener
from ktrdr_vm.run.run import Run
from ktrdr_vm.run.vm import Stage

__all__ = ["destroyed"]

COMMIT, BASE = "c" * 40, "b" * 40


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]) -> Callable[..., tuple[Any, Path]]:
    """Runs the gates of a commit with these outcomes; the report, and the run directory."""
    monkeypatch.setattr(Stage, "provision", lambda *_: None)

    def act(*outcomes: GateOutcome, listener: Listener | None = None) -> tuple[Any, Path]:
        gates = tuple(
            GateResult(f"g{number}", outcome, "2026-01-01T00:00:00Z", 1.0) for number, outcome in enumerate(outcomes)
        )
        monkeypatch.setattr(Stage, "run_gates", lambda *_, **__: gates)
        run: Run = make_run(tmp_path)
        gathered = run._gathered
        facts = replace(gathered.plan.facts, base_commit=COMMIT, base_ref="refs/heads/x")
        base = Base(BASE, "merge base", tmp_path, "refs/heads/x", ("app.py",))
        run._gathered = replace(gathered, plan=replace(gathered.plan, facts=facts), base=base)
        run._listener = listener or run._listener
        return run.execute(), tmp_path / "runs/one/latest"

    return act


def test_the_report_names_the_commit_and_what_judged_it(execute: Callable[..., tuple[Any, Path]]) -> None:
    report, directory = execute("passed", "passed")
    written = json.loads((directory / "report.json").read_text())
    assert report.exit_code == 0 and written["base_commit"] == BASE
    judged = written["verification"]
    assert (judged["mode"], judged["commit"], judged["outcome"], judged["clean"]) == ("fresh", COMMIT, "passed", True)
    assert {gate["stage"] for gate in written["gates"]} == {"verification"}
    assert written["commits"] == [{"ref": "refs/heads/x", "commit": COMMIT, "changed": ["app.py"], "observed": "host"}]


@pytest.mark.parametrize(("outcomes", "result"), [(("passed",), "PASSED"), (("passed", "failed"), "FAILED")])
def test_a_verdict_is_attested(
    execute: Callable[..., tuple[Any, Path]], tmp_path: Path, outcomes: Any, result: str
) -> None:
    _, directory = execute(*outcomes)
    found = check_attestation(
        directory / "attestation.intoto.json", Home(tmp_path).attestation_public_key, commit=COMMIT
    )
    assert (found.result, found.base) == (result, BASE)


def test_the_report_has_the_revision_of_its_end(execute: Callable[..., tuple[Any, Path]], tmp_path: Path) -> None:
    guard = Home(tmp_path).instance("one").guard
    guard.mkdir(parents=True)
    (guard / "revision").write_text(f"{'1' * 12}-{'a' * 16}-4")
    report, directory = execute("passed")
    [found] = json.loads((directory / "report.json").read_text())["revisions"]
    assert (found["instance_id"], found["incarnation"], found["grants"]) == ("one", "1" * 12, 4)
    assert found["plan_digest"] == report.plan_digest


@pytest.mark.parametrize("outcomes", [("error",), ("passed", "error")])
def test_a_gate_that_could_not_run_is_no_verdict(execute: Callable[..., tuple[Any, Path]], outcomes: Any) -> None:
    _, directory = execute(*outcomes)
    assert (directory / "report.json").exists() and not (directory / "attestation.intoto.json").exists()


def test_a_key_that_cannot_be_used_is_said_and_changes_no_verdict(
    execute: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    class Notes(Listener):
        texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    Home(tmp_path).attestation_key.write_text("damaged")
    Home(tmp_path).attestation_key.chmod(0o600)
    report, directory = execute("passed", listener=Notes())
    assert report.exit_code == 0 and not (directory / "attestation.intoto.json").exists()
    assert any("the verdict is not attested" in text for text in Notes.texts)


def test_a_report_that_cannot_be_written_is_not_attested(
    execute: Callable[..., tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = RunDirectory.write

    def write(self: RunDirectory, name: str, text: str) -> None:
        if name == "report.html":
            raise OSError(28, "No space left on device")
        before(self, name, text)

    monkeypatch.setattr(RunDirectory, "write", write)
    report, directory = execute("passed")
    assert report.exit_code == 3 and not (directory / "attestation.intoto.json").exists()


@pytest.mark.parametrize(
    "error", [GuestError("no answer", where="one", hint="x"), HostError("no", where="x", hint="y")]
)
def test_a_run_that_ends_early_has_no_verdict(
    execute: Callable[..., tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(module.Run, "_judge", stop)
    report, directory = execute("passed")
    assert report.exit_code in (3, 4) and not (directory / "attestation.intoto.json").exists()
