"""However a run ends, what it made is taken away: a full disk, a mistake, an interruption at the very end, nobody who
reads."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from ktrdr_vm.cli.progress import show_resource
from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence import run_directory
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.run_removal import remove_old_runs
from ktrdr_vm.host.runs import create_run
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.report.model import GateResult, RunReport
from ktrdr_vm.run.checkpoint import Stop, read_stop, write_stop
from ktrdr_vm.run.listener import Listener, Options
from ktrdr_vm.run.run import Run
from ktrdr_vm.run.vm import Stage
from tests.fakes.libvirt import FakeLibvirt

DOCUMENT: dict[str, Any] = {"version": 1, "name": "n", "image": "i"}


@pytest.fixture
def destroyed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(Instance, "destroy", lambda self, notify: calls.append(self.identity.instance_id))
    return calls


def make_run(tmp_path: Path, *, stop: Stop | None = None) -> Run:
    facts = Facts(
        "tcg", "/e", "m", str(tmp_path), ImageFacts("i", "d" * 64, "/i"), owner_uid=os.getuid(), owner_gid=os.getgid()
    )
    plan = Plan(build_profile(DOCUMENT), facts, parse_instance_id("one"), DOCUMENT)
    loaded: Any = SimpleNamespace(source="p.yaml")
    gathered = Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "test"), None, None, ())
    return Run(gathered, Home(tmp_path), FakeLibvirt(), Options(), Listener(), stop=stop)


def execute(tmp_path: Path) -> tuple[RunReport, dict[str, Any]]:
    report = make_run(tmp_path).execute()
    written = json.loads((tmp_path / "runs/one/latest/report.json").read_text())
    return report, written


def raise_(error: BaseException) -> Any:
    def act(*_: object, **__: object) -> NoReturn:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(OSError(28, "No space left on device"), 3), (ValueError("a mistake"), 4), (KeyboardInterrupt(), 130)],
    ids=["full", "mistake", "interrupt"],
)
def test_whatever_ends_the_work_the_instance_is_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], error: BaseException, exit_code: int
) -> None:
    monkeypatch.setattr(Stage, "provision", raise_(error))
    report, written = execute(tmp_path)
    assert destroyed == ["one"]
    assert report.exit_code == written["exit_code"] == exit_code


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_evidence_that_cannot_be_kept_does_not_keep_the_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], error: BaseException
) -> None:
    """Ctrl-C may also come when the work is done."""
    left = [error]
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    monkeypatch.setattr(RunDirectory, "keep_console", lambda *_: raise_(left.pop())() if left else None)
    report, _ = execute(tmp_path)
    assert destroyed == ["one"]
    assert report.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 3)


def test_half_a_line_of_the_ledger_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]
) -> None:
    def provision(_self: Stage, _recorder: object) -> None:
        ledger = Home(tmp_path).instance("one").ledger
        ledger.parent.mkdir()
        ledger.write_text(
            '{"time": "9999-01-01T00:00:00.000Z", "instance_id": "one", "kind": "dns", "verdict": "deny", "name": "a.example"}\n{"time": "9", "ki'
        )

    monkeypatch.setattr(Stage, "provision", provision)
    report, written = execute(tmp_path)
    assert (destroyed, report.exit_code, [row["host"] for row in written["egress"]["denied"]]) == (
        ["one"],
        0,
        ["a.example"],
    )


def make_stopped(tmp_path: Path) -> tuple[Instance, Stop]:
    """A sandbox whose run stopped at an escalation, and its checkpoint."""
    home = Home(tmp_path)
    home.create()
    paths = home.instance("one")
    paths.directory.mkdir()
    Journal(paths.journal, "one", mode="sandbox").save()
    stop = Stop("p.yaml", str(tmp_path), (), "never", False, "20260101T000000Z-aaaa", "2026-01-01T00:00:00Z", "d", ())
    instance = Instance(home, parse_instance_id("one"), FakeLibvirt())
    write_stop(instance, stop)
    return instance, stop


@pytest.mark.parametrize("meanwhile", ["destroyed", "stopped again"])
def test_a_run_that_another_command_has_continued_keeps_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], meanwhile: str
) -> None:
    """The checkpoint is read before the lock is taken, which the other command may hold until the run has ended."""
    instance, read = make_stopped(tmp_path)
    monkeypatch.setattr(Stage, "resume", lambda *_: pytest.fail("it was resumed"))
    waiting = make_run(tmp_path, stop=read_stop(instance))
    written = create_run(Home(tmp_path), "one", read.run_id) / "report.json"
    written.write_text("of the other command")
    if meanwhile == "destroyed":
        shutil.rmtree(instance.paths.directory)
    else:
        write_stop(instance, replace(read, results=(GateResult("unit", "passed", "2026-01-01T00:00:00Z", 1.0),)))
    with pytest.raises(UsageError):
        waiting.execute()
    assert written.read_text() == "of the other command" and destroyed == []
    assert [path.name for path in written.parent.iterdir()] == ["report.json"]


def test_a_new_run_does_not_destroy_one_that_waits_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str]
) -> None:
    instance, _ = make_stopped(tmp_path)
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    instance.paths.saved.write_bytes(b"the memory of the agent")
    with pytest.raises(UsageError, match="stopped at an escalation") as refused:
        make_run(tmp_path).execute()
    assert "apply --continue one" in refused.value.hint and destroyed == []
    # Once it runs again, as with `resume`, it is an instance like any other.
    instance.paths.saved.unlink()
    make_run(tmp_path).execute()
    assert destroyed == ["one"]


def test_a_sandbox_never_takes_the_place_of_what_a_person_lives_in(tmp_path: Path, destroyed: list[str]) -> None:
    home = Home(tmp_path)
    home.create()
    home.instance("one").directory.mkdir()
    Journal(home.instance("one").journal, "one", mode="interactive").save()
    with pytest.raises(UsageError, match="interactive"):
        make_run(tmp_path).execute()
    assert destroyed == []


def test_destroy_that_is_interrupted_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def act(_self: Instance, _notify: object) -> None:
        calls.append("x")
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Instance, "_destroy", act)
    with pytest.raises(KeyboardInterrupt):
        Instance(Home(tmp_path), parse_instance_id("one"), FakeLibvirt()).destroy()
    assert calls == ["x", "x"]


def test_what_gates_fetched_does_not_push_out_the_runs(tmp_path: Path) -> None:
    names = [f"gates-2026010{number}T000000Z-aaaa" for number in range(1, 5)] + ["20260101T000000Z-bbbb"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_old_runs(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260101T000000Z-bbbb", *names[2:4]]


def test_a_run_of_a_clock_that_was_set_back_is_not_removed_at_its_end(tmp_path: Path) -> None:
    names = [f"2026010{number}T000000Z-aaaa" for number in range(1, 5)]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to(names[0])
    remove_old_runs(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], *names[2:], "latest"]


def test_a_console_log_is_its_end_whatever_the_guest_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "MAX_CONSOLE", 1000)
    directory = RunDirectory(tmp_path / "runs/one/r", "one", (os.getuid(), os.getgid()), str)
    console = tmp_path / "console"
    for content in (b"x" * 3000, b"\xff" * 3000, "é€".encode() * 900):
        console.write_bytes(content + b"the end")
        directory.keep_console(console)
        kept = (directory.path / "console.log").read_bytes()
        assert 990 < len(kept) <= 1000 and kept.endswith(b"the end")


def test_links_in_a_run_directory_are_not_followed_when_it_is_handed_over(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs/one/r", "one", (os.getuid(), os.getgid()), str)
    outside = tmp_path / "outside"
    outside.mkdir()
    (directory.path / "artifacts/link").symlink_to(outside)
    (directory.path / "artifacts/broken").symlink_to("/nowhere/at/all")
    directory.close()
    directory.close()
    directory.event("late")  # and nothing is raised


def test_nobody_who_reads_does_not_end_a_teardown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich leaves the process when its output is a closed pipe: `destroy 2>&1 | head -1` stopped half way."""

    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    show_resource("domain", "one", "removed", 0.0)
