"""Whatever the evidence contains and whatever a step of the end raises: the instance is destroyed, and a report says
what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_endings import destroyed, execute, make_run, raise_

from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.report.model import Artifact
from ktrdr_vm.run import assembly
from ktrdr_vm.run.collect import Harvest
from ktrdr_vm.run.vm import Stage

__all__ = ["destroyed"]

ERRORS: list[Exception] = [
    LookupError("unknown encoding: foo"), TypeError("wrong"), ValueError("bad"), RecursionError(), MemoryError(), OSError(28, "No space left"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), KeyError("k"), ArithmeticError("x"), AssertionError("x"), HostError("no", where="x", hint="y"),
]  # fmt: skip
# Each step of the end, by what it calls.
STEPS: dict[str, tuple[Any, str]] = {
    "console": (RunDirectory, "keep_console"),
    "ledger": (RunDirectory, "keep_ledger"),
    "escalations": (Harvest, "_keep_escalations"),
    "network": (assembly, "sum_up_egress"),
    "denials": (assembly, "explain_denials"),
    "tests": (assembly, "read_test_files"),
    "first lines": (assembly, "find_first_lines"),
    "event": (RunDirectory, "event"),
    "json": (assembly, "render_report_json"),
    "junit": (assembly, "render_junit"),
    "html": (assembly, "render_html"),
    "close": (RunDirectory, "close"),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", STEPS)
def test_no_step_of_the_end_keeps_the_next_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], step: str, error: Exception
) -> None:
    owner, name = STEPS[step]
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    before = getattr(owner, name)
    calls = []

    def once(*arguments: Any, **keywords: Any) -> Any:
        # Of events only the last; a renderer of JSON gets along with less.
        if name == "event" and "run_finished" not in arguments:
            return before(*arguments, **keywords)
        calls.append(1)
        if len(calls) == 1:
            raise error
        return before(*arguments, **keywords)

    monkeypatch.setattr(owner, name, once)
    report = make_run(tmp_path).execute()
    assert calls and destroyed == ["one"]
    assert report.exit_code == (error.exit_code if isinstance(error, KtrdrError) else 3 if isinstance(error, OSError) else 4) or step in (
        "network", "denials", "tests", "first lines",
    ), report.message  # fmt: skip
    assert report.exit_code in (3, 4) and report.outcome == "error" and report.message and report.hint
    written = json.loads((tmp_path / "runs/one/latest/report.json").read_text())
    assert written["instance_id"] == "one" and written["residue"] == []


def test_evidence_whose_module_cannot_be_loaded_keeps_no_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]
) -> None:
    """It is imported when it is needed first, perhaps while the program is being upgraded."""
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    load, calls = Stage.__dict__["harvest"].func, []

    def once(stage: Stage) -> Harvest:
        calls.append(1)
        # The first is for the artifacts, before the end begins.
        if len(calls) == 2:
            raise ImportError("cannot import name 'Harvest'")
        return load(stage)

    monkeypatch.setattr(Stage, "harvest", property(once))
    report = make_run(tmp_path).execute()
    assert destroyed == ["one"] and report.exit_code == 4 and "cannot import" in report.message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_destruction_that_fails_in_any_way_is_residue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    monkeypatch.setattr(Instance, "destroy", raise_(error))
    report, written = execute(tmp_path)
    assert report.exit_code == written["exit_code"] == 5 and written["residue"]


HOSTILE = {
    "codec": b'<?xml version="1.0" encoding="hex"?><testsuite/>',
    "deep": b"<testsuite>" * 5000,
    "control": b"<testsuite><testcase name='\x00\x1b'><failure>\xff\xfe</failure></testcase></testsuite>",
    "laughs": b'<!DOCTYPE t [<!ENTITY a "aaaa">]><testsuite><testcase name="&a;"/></testsuite>',
    "cut": b"<testsuite><testcase",
    "surrogates": "<testsuite><testcase name='\ud800'/></testsuite>".encode("utf-8", "surrogatepass"),
    "references": b"<testsuite><testcase name='&#xD800;&#0;&#99999999;'/></testsuite>",
    "time": b"<testsuite><testcase name='x' time='1e999'/></testsuite>",
    "many": b"<testsuite>" + b"<a/>" * 1_000_001 + b"</testsuite>",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_artifacts_that_no_parser_likes_end_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], what: str
) -> None:
    def provision(stage: Stage, recorder: Any) -> None:
        place = recorder.directory.path / "artifacts" / "x.xml"
        place.write_bytes(HOSTILE[what])
        stage.harvest.artifacts += (Artifact("artifacts/x.xml", "/workspace/x.xml", len(HOSTILE[what]), "0" * 64),)

    monkeypatch.setattr(Stage, "provision", provision)
    report, written = execute(tmp_path)
    assert (destroyed, report.exit_code, written["outcome"]) == (["one"], 0, "passed")
    assert len(written["tests"]) == 1
    for name in ("report.html", "junit.xml", "events.jsonl"):
        assert (tmp_path / "runs/one/latest" / name).stat().st_size > 0


def test_hostile_evidence_ends_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]
) -> None:
    """A ledger and an escalation that no guard would write, a console of any bytes."""
    paths = Home(tmp_path).instance("one")

    def provision(*_: object) -> None:
        paths.directory.mkdir(parents=True)
        row = {"time": "9999-01-01T00:00:00.000Z", "instance_id": "one", "kind": "tls", "verdict": "allow"}
        odd: tuple[object, ...] = (None, "x", -1, [], {})
        keys = ("port", "count", "bytes_in", "name", "time")
        lines = [json.dumps({**row, key: value}) for key in keys for value in odd]
        paths.ledger.write_bytes(
            b"\n".join([*(line.encode() for line in lines), b"\xff\xfe", b"[" * 9999, b"null", b"{}"])
        )
        paths.escalations.mkdir()
        (paths.escalations / "e1.json").write_bytes(b"[" * 9999)
        (paths.escalations / "e2.json").write_text('{"answer": 5, "packet": null}')
        paths.console.write_bytes(bytes(range(256)) * 100)

    monkeypatch.setattr(Stage, "provision", provision)
    report, written = execute(tmp_path)
    assert (destroyed, report.exit_code) == (["one"], 0)
    assert all(row["port"] == 0 for row in written["egress"]["allowed"])


def test_a_secret_at_the_place_where_a_message_is_cut_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]
) -> None:
    """The report keeps the beginning of a failed case's message, so the message is masked before it is cut."""
    secret = "hunter2-" + "0123456789abcdef" * 4

    def provision(stage: Stage, recorder: Any) -> None:
        recorder.directory.mask.add([secret.encode()])
        content = f'<testsuite><testcase name="x"><failure message="{"m" * 470}{secret}"/></testcase></testsuite>'
        (recorder.directory.path / "artifacts" / "x.xml").write_text(content)
        stage.harvest.artifacts += (Artifact("artifacts/x.xml", "/workspace/x.xml", len(content), "0" * 64),)

    monkeypatch.setattr(Stage, "provision", provision)
    report, written = execute(tmp_path)
    assert written["tests"][0]["failed"][0]["message"].startswith("m" * 470 + "***")
    for name in ("report.json", "report.html", "junit.xml"):
        assert secret[:12] not in (tmp_path / "runs/one/latest" / name).read_text()
    assert report.tests[0].failures == 1 and destroyed == ["one"]
