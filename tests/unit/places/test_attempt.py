"""Attempts on the host where they run, with a stand-in for the run: retries, takeovers, cancelling, and what is refused
before."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import BusyError, HostError, KtrdrError, UsageError
from ktrdr_vm.evidence.run_directory import RunDirectory, make_run_id
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import create_run
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.places.attempt import run_request
from ktrdr_vm.places.filenames import CANCEL, LEASE, OUTCOME, STARTED
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.pack import Asked, pack_request
from ktrdr_vm.places.request import Request, make_request_id
from ktrdr_vm.places.request_state import write_outcome
from ktrdr_vm.places.secret_values import Values
from ktrdr_vm.places.spool import Spool
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import RunReport
from ktrdr_vm.run.listener import Listener

PROFILE = "extends: base.yaml\nname: p\ngates: [unit]\nvars: {x: 1}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def submit(tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Request]:
    monkeypatch.setattr("ktrdr_vm.inputs.resolve.read_policy", OwnerPolicy)
    work = tmp_path / "work"
    (work / "playbooks").mkdir(parents=True)
    (work / "playbooks/unit.yaml").write_text(
        "- hosts: all\n  tasks:\n    - include_tasks: more.yaml\n    - copy: {src: x.txt, dest: /x}\n"
    )
    (work / "playbooks/more.yaml").write_text("- command: 'true'\n")
    (work / "playbooks/files").mkdir()
    (work / "playbooks/files/x.txt").write_text("x")
    (work / "base.yaml").write_text("version: 1\nname: base\nimage: debian-13-docker\n")
    (work / "ktrdr.yaml").write_text(PROFILE)

    def submit(**place: Any) -> Request:
        request_id = make_request_id()
        asked = Asked(work / "ktrdr.yaml", work, "a@b", "demo")
        folder = tmp_path / "packed" / request_id
        pack_request(asked, Place("far", "ssh", "h", **place), folder, request_id, print, base=None)
        return spool.receive_folder(folder, request_id)

    return submit


class FakeRun:
    """Writes a run directory. `errors` are raised by the first attempts."""

    def __init__(self, *errors: KtrdrError, seconds: float = 0, code: int = 0) -> None:
        self.errors, self.seconds, self.code, self.begun = list(errors), seconds, code, 0
        self.workspace: dict[str, str] = {}
        self.values: list[dict[str, bytes]] = []

    def __call__(
        self, gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values
    ) -> RunReport:
        self.values.append(dict(values))
        self.begun += 1
        root = Path(gathered.plan.facts.workspace)
        self.workspace = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
        if self.errors:
            raise self.errors.pop(0)
        run_id, code = make_run_id(), self.code
        directory = RunDirectory(create_run(home, "demo", run_id), "demo", (os.getuid(), os.getgid()), str)
        listener.started(directory.path, str)
        directory.event("run_started")
        try:
            time.sleep(self.seconds)
        except KeyboardInterrupt:
            code = 130
        report = RunReport(
            "demo", run_id, "p", "sandbox", "0", "0", {0: "passed", 130: "interrupted"}.get(code, "failed"), code, "t", 1.0,  # type: ignore[arg-type]
        )  # fmt: skip
        directory.write("report.json", render_report_json(report))
        directory.close()
        return report


@pytest.fixture
def interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def test_an_attempt_leaves_its_evidence(submit: Callable[..., Request], spool: Spool, home: Home) -> None:
    request, run = submit(), FakeRun()
    assert run_request(spool, request.request_id, home, execute=run) == 0
    assert set(run.workspace) == {
        "ktrdr.yaml",
        "base.yaml",
        "playbooks/unit.yaml",
        "playbooks/more.yaml",
        "playbooks/files/x.txt",
    }
    attempt = spool.attempt(request.request_id, 1)
    assert {path.name for path in attempt.iterdir()} == {LEASE, OUTCOME, "events.jsonl", "run"}
    assert json.loads((attempt / "events.jsonl").read_text().splitlines()[0])["event"] == "run_started"
    state = spool.state(request.request_id)
    assert (state.state, state.outcome, state.exit_code) == ("finished", "passed", 0)
    with pytest.raises(UsageError, match="has ended"):
        run_request(spool, request.request_id, home, execute=run)
    assert run.begun == 1


@pytest.mark.parametrize(("code", "begun"), [(0, 1), (1, 1), (2, 1), (5, 1), (130, 1)])
def test_a_result_is_not_tried_again(
    code: int, begun: int, submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request, run = submit(attempts=3), FakeRun(code=code)
    assert run_request(spool, request.request_id, home, execute=run) == code
    assert run.begun == begun


def test_a_host_is_prepared_without_a_run(submit: Callable[..., Request], spool: Spool, home: Home) -> None:
    request = submit()
    assert run_request(spool, request.request_id, home, execute=lambda *_, **__: None) == 0
    state = spool.state(request.request_id)
    assert (state.state, state.outcome, state.run_id) == ("finished", "passed", "")


def test_each_attempt_has_the_values_that_came_with_the_request(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    run = FakeRun(HostError("no memory", hint="wait"))
    assert run_request(spool, submit(attempts=2).request_id, home, execute=run, values={"api": b"x"}) == 0
    assert run.values == [{"api": b"x"}, {"api": b"x"}]


def test_a_host_error_is_tried_again(submit: Callable[..., Request], spool: Spool, home: Home) -> None:
    lacks = HostError("no memory", hint="wait", where="host")
    request, run = submit(attempts=2), FakeRun(lacks)
    assert run_request(spool, request.request_id, home, execute=run) == 0
    assert json.loads((spool.attempt(request.request_id, 1) / OUTCOME).read_text())["message"] == "no memory"
    request, run = submit(attempts=2), FakeRun(lacks, lacks, lacks)
    assert run_request(spool, request.request_id, home, execute=run) == 3
    assert run.begun == 2 and spool.state(request.request_id).exit_code == 3


@pytest.mark.usefixtures("interrupted_by_sigterm")
@pytest.mark.parametrize(("mark", "outcome"), [(CANCEL, "cancelled"), ("attempts/2", "interrupted")])
def test_a_mark_stops_a_run_with_its_evidence(
    mark: str, outcome: str, submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request = submit(attempts=3)
    folder = spool.request(request.request_id)

    class Marking(FakeRun):
        def __call__(
            self, gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values
        ) -> RunReport:
            (folder / mark).mkdir(parents=True)
            return super().__call__(gathered, home, request, listener, values)

    assert run_request(spool, request.request_id, home, execute=Marking(seconds=30)) == 130
    said = json.loads((folder / "attempts/1" / OUTCOME).read_text())
    assert said["outcome"] == outcome and "stopped" in said["message"]
    assert (folder / "attempts/1/run/report.json").exists()


def test_one_that_was_cancelled_while_it_waited_never_begins(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request, run = submit(), FakeRun()
    spool.mark_cancelled(request.request_id)
    with pytest.raises(UsageError, match="cancelled"):
        run_request(spool, request.request_id, home, execute=run)
    assert run.begun == 0 and spool.state(request.request_id).state == "cancelled"


def test_the_end_of_a_request_removes_old_ones(submit: Callable[..., Request], spool: Spool, home: Home) -> None:
    old, request = submit(), submit()
    assert run_request(spool, old.request_id, home, execute=FakeRun()) == 0
    folder = spool.request(old.request_id)
    for path in (folder / STARTED, folder / "attempts/1" / LEASE, folder / "attempts/1", folder):
        if path.exists():
            os.utime(path, (1, 1))
    assert run_request(spool, request.request_id, home, execute=FakeRun()) == 0
    assert spool.list_ids() == [request.request_id]


def test_a_running_attempt_is_not_doubled_and_a_dead_one_is_taken_over(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request, run = submit(attempts=2, grace=2), FakeRun()
    attempt = spool.attempt(request.request_id, 1)
    attempt.mkdir(parents=True)
    node = os.uname().nodename
    (attempt / LEASE).write_text(json.dumps({"node": node, "pid": os.getpid()}) + "\n")
    with pytest.raises(BusyError):
        run_request(spool, request.request_id, home, execute=run)
    assert run.begun == 0
    # Of a node that is cut off: it is waited for, until its lease has ended.
    (attempt / LEASE).write_text(json.dumps({"node": "elsewhere", "pid": 7}) + "\n")
    began = time.monotonic()
    assert run_request(spool, request.request_id, home, execute=run) == 0
    assert time.monotonic() - began > 1 and run.begun == 1
    assert spool.state(request.request_id).attempt == 2


@pytest.mark.parametrize("ends", [True, False])
def test_a_requeued_job_leaves_the_end_of_a_cancelled_attempt_to_it(
    ends: bool, submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    """Of a node that only the scheduler has lost: its evidence would be hidden behind the end of the request."""
    request, run = submit(attempts=2, grace=2), FakeRun()
    attempt = spool.attempt(request.request_id, 1)
    attempt.mkdir(parents=True)
    (attempt / LEASE).write_text(json.dumps({"node": "elsewhere", "pid": 7}) + "\n")
    spool.mark_cancelled(request.request_id)
    ended = {"outcome": "cancelled", "exit_code": 130, "run_id": "20260101T000000Z-0123"}
    timer = threading.Timer(0.5, lambda: write_outcome(attempt, ended) if ends else None)
    timer.start()
    with pytest.raises(UsageError, match="cancelled"):
        run_request(spool, request.request_id, home, execute=run)
    timer.join()
    state = spool.state(request.request_id)
    assert run.begun == 0 and (state.outcome, state.exit_code) == ("cancelled", 130)
    assert (state.state, state.run_id) == ("finished" if ends else "cancelled", ended["run_id"] if ends else "")


def test_another_playbook_than_the_one_that_was_submitted_is_refused(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request, run = submit(), FakeRun()
    (spool.request(request.request_id) / "files/playbooks/files/x.txt").write_text("other")
    assert run_request(spool, request.request_id, home, execute=run) == 2
    said = json.loads((spool.attempt(request.request_id, 1) / OUTCOME).read_text())
    assert "not the one that was submitted" in said["message"] and run.begun == 0
    assert list(home.workspaces.iterdir()) == [], "the private folder is removed"


def test_the_workspace_of_a_killed_attempt_is_removed_by_the_next(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    (home.workspaces / "20260101T000000Z-0123abcd" / "workspace").mkdir(parents=True)
    assert run_request(spool, submit().request_id, home, execute=FakeRun()) == 0
    assert list(home.workspaces.iterdir()) == []


def test_a_spool_that_cannot_be_written_is_a_host_error(
    submit: Callable[..., Request], spool: Spool, home: Home
) -> None:
    request = submit(grace=1)
    attempt = spool.attempt(request.request_id, 1)

    class Breaking(FakeRun):
        def __call__(
            self, gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values
        ) -> RunReport:
            report = super().__call__(gathered, home, request, listener, values)
            attempt.rename(attempt.with_name("gone"))
            return report

    said: list[str] = []
    with pytest.raises(HostError, match="cannot be written"):
        run_request(spool, request.request_id, home, execute=Breaking(), note=said.append)
    assert any("the evidence is in" in text for text in said)
