"""`exec`, `gate`, MCP and programs refuse when what an instance may do has changed since the revision that they
expect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm import api
from ktrdr_vm.cli import ssh as ssh_command
from ktrdr_vm.cli.main import cli
from ktrdr_vm.cli.mcp_tools import TOOLS, answer
from ktrdr_vm.egress import client
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.guest.push import Push, Pushed
from ktrdr_vm.host.journal import Journal, locked
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.profile.model import Workspace
from ktrdr_vm.report.model import GateResult
from ktrdr_vm.run import gates as gate_run
from ktrdr_vm.run import push as push_run

NOW, BEFORE = f"{'0' * 12}-{'a' * 16}-3", f"{'0' * 12}-{'a' * 16}-2"
GUEST: list[str] = []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> Home:
    """An instance whose guard says the revision NOW. What is run in its guest is in GUEST."""
    made = Home(tmp_path)
    made.create()
    write_instance(made, "one")
    GUEST.clear()
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr(client, "ask_guard", lambda _directory, op, **_: {"revision": NOW, "parts": {}})
    monkeypatch.setattr(Target, "refuse_suspended", lambda _: None)
    monkeypatch.setattr(ssh_command, "warn_of_guard", lambda _: None)
    monkeypatch.setattr(ssh_command, "_become", lambda *words: GUEST.append(words[-1]))
    monkeypatch.setattr(api, "find_mask", lambda *_: str)
    monkeypatch.setattr(gate_run, "find_mask", lambda *_: str)

    def run(command: Any, **_: Any) -> Any:
        GUEST.append(str(command))
        return SimpleNamespace(exit_code=0, stdout=b"", stderr=b"", truncated=False)

    monkeypatch.setattr(LoadedInstance, "connect", lambda *_, **__: SimpleNamespace(run=run, close=lambda: None))

    def run_playbook(playbook: Any, *_: Any) -> GateResult:
        GUEST.append(playbook.name)
        return GateResult(playbook.name, "passed", "2026-01-01T00:00:00Z", 1.0)

    monkeypatch.setattr(gate_run, "run_playbook", run_playbook)
    monkeypatch.setattr(push_run, "find_workspace", lambda _: Workspace())
    monkeypatch.setattr(push_run, "find_repository", lambda *_: None)

    def push_to(_: object, push: Push, *__: object) -> Pushed:
        GUEST.append(str(push.comments))
        return Pushed()

    monkeypatch.setattr(push_run, "push_to", push_to)
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "own.yaml").write_text(
        "- hosts: all\n  tasks: [{name: x, ansible.builtin.command: {cmd: x}}]\n"
    )
    return made


def call(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words), standalone_mode=False)


def calls(home: Home, expect: str) -> dict[str, Callable[[], Any]]:
    option = ("--expect", expect) if expect else ()
    return {
        "exec": lambda: call("exec", *option, "one", "--", "true"),
        "push": lambda: call("push", *option, "one", "--comments", __file__),
        "gate": lambda: call("gate", *option, "one", "own", "--workspace", str(home.root)),
    }


@pytest.mark.parametrize("command", ["exec", "gate", "push"])
@pytest.mark.parametrize("expect", [NOW, ""])
def test_a_command_runs_if_nothing_has_changed(home: Home, command: str, expect: str) -> None:
    done = calls(home, expect)[command]()
    assert done.exception is None and len(GUEST) == 1, done.output


def test_a_push_goes_beside_a_run_that_holds_the_instance(home: Home) -> None:
    with locked(home.lock("one"), "the run"):
        done = call("push", "one", "--comments", __file__)
    assert done.exception is None and len(GUEST) == 1


def test_a_push_prints_the_branch_and_the_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = Pushed("review/3", "a" * 40, True, ".ktrdr/review/2.md")
    monkeypatch.setattr(push_run, "push_to", lambda *_: pushed)
    assert call("push", "one", "--comments", __file__).stdout.splitlines() == [
        "aaaaaaaaaaaa  review/3  created",
        "comments  .ktrdr/review/2.md",
    ]


@pytest.mark.parametrize("command", ["exec", "gate", "push"])
@pytest.mark.parametrize("expect", [BEFORE, "3", "' OR 1"])
def test_a_command_is_refused_before_it_reaches_the_guest(home: Home, command: str, expect: str) -> None:
    done = calls(home, expect)[command]()
    assert isinstance(done.exception, UsageError) and GUEST == []


@pytest.mark.parametrize("command", ["exec", "gate", "push"])
def test_a_guard_that_does_not_answer_refuses_as_well(
    home: Home, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise ProvisionError("the guard does not answer", where="x", hint="y")

    monkeypatch.setattr(client, "ask_guard", silent)
    done = calls(home, NOW)[command]()
    assert isinstance(done.exception, ProvisionError) and GUEST == []


def test_a_change_between_two_gates_stops_the_second(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [NOW, NOW, NOW[:-1] + "4"]
    monkeypatch.setattr(
        client,
        "ask_guard",
        lambda _directory, op, **_: {"parts": {}, **({"revision": said.pop(0)} if op == "revision" else {})},
    )
    done = call("gate", "--expect", NOW, "one", "own", "own", "--workspace", str(home.root))
    assert isinstance(done.exception, UsageError) and GUEST == ["own"]


def ask(home: Home, tool: str, **arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer(home.root, json.dumps({"tool": tool, "arguments": arguments}).encode()))
    return found


def test_tools_of_mcp_refuse_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktrdr_vm.instance.belonging.require_instance", lambda *_: None)
    assert ask(home, "revision", instance_id="one") == {"value": {"instance_id": "one", "revision": NOW}}
    for tool, more in (("execute", {"command": ["true"]}), ("gate", {"name": "own"})):
        assert "its grants changed" in ask(home, tool, instance_id="one", expect=BEFORE, **more)["error"]
        assert GUEST == []
        assert "value" in ask(home, tool, instance_id="one", expect=NOW, **more)
        assert len(GUEST) == 1
        GUEST.clear()
    assert {"execute", "gate", "revision"} <= TOOLS.keys()


def test_status_shows_the_revision(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedInstance, "status", lambda _: [])
    home.instance("one").guard.mkdir()
    (home.instance("one").guard / "revision").write_text(NOW)
    assert json.loads(call("status", "one", "--json").stdout)["revision"] == NOW
    assert f"revision {NOW}" in call("status", "one").stdout


def write_ledger(home: Home) -> None:
    row = {"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "dns", "verdict": "deny"}
    rows = [
        {**row, "name": "old"},
        *({**row, "name": name, "revision": text} for name, text in (("before", BEFORE), ("now", NOW))),
    ]
    home.instance("one").ledger.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.mark.parametrize(
    ("revision", "names"),
    [
        (NOW, ["now"]),
        (NOW[:12], ["before", "now"]),
        (NOW[:29], ["before", "now"]),
        (NOW[:-1], []),
        (NOW[:5], []),
        ("", ["old", "before", "now"]),
    ],
)
def test_the_ledger_is_shown_by_revision(home: Home, revision: str, names: list[str]) -> None:
    write_ledger(home)
    option = ("--revision", revision) if revision else ()
    shown = [json.loads(line)["name"] for line in call("egress", "log", "one", "--json", *option).stdout.splitlines()]
    assert shown == names


def test_events_carry_the_revision_of_the_instance_and_its_last_one_afterwards(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    directory = RunDirectory(tmp_path / "run", "one", (os.getuid(), os.getgid()), str)
    said = [BEFORE]
    directory.event("run_started")
    directory.follow_revision(lambda: said[0])
    directory.event("a", revision="forged")
    said[0] = NOW
    directory.event("b")
    said[0] = ""
    directory.event("c")
    directory.close()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [one["revision"] for one in events] == ["", BEFORE, NOW, NOW]
