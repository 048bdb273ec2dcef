"""Whoever looks at an instance is told that its guard does not serve: inside it looks like a network that is down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.cli.main import main
from ktrdr_vm.egress import client
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance import guard_status
from ktrdr_vm.instance import inventory as discovery
from ktrdr_vm.instance.guard_status import check_guard, find_faults
from ktrdr_vm.instance.inventory import Found, find_instances
from ktrdr_vm.instance.loaded import LoadedInstance

WORDS = "it ended with exit code 1: ModuleNotFoundError: No module named 'dns'"
PARTS = {
    "the resolver": {"pid": 0, "serves": False, "ends": 9, "said": WORDS},
    "the proxy": {"pid": 12, "serves": True, "ends": 0, "said": ""},
}
FAULT = f"the resolver does not serve: {WORDS}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> Home:
    """One instance that runs, by its journal and by libvirt; its guard lives, and one part of it does not."""
    made = Home(tmp_path)
    made.create()
    write_instance(made, "one")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    facts = DomainFacts("ktrdr-one", "one", str(made.root), "interactive", DomainState.RUNNING, True)
    monkeypatch.setattr(Libvirt, "list_ours", lambda _: [facts])
    monkeypatch.setattr(Libvirt, "find", lambda *_: facts)
    monkeypatch.setattr(Libvirt, "measure", lambda *_: None)
    monkeypatch.setattr(discovery, "list_tables", lambda _: [])
    monkeypatch.setattr(discovery, "list_links", lambda *_: {})
    monkeypatch.setattr(guard_status, "is_locked", lambda _: True)
    monkeypatch.setattr(client, "ask_guard", lambda *_, **__: {"pid": 1, "parts": PARTS})
    return made


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ktrdr-vm", *words])
    monkeypatch.setattr("ktrdr_vm.cli.main.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        main()


def test_a_part_is_named_with_its_last_words(home: Home) -> None:
    assert find_faults({"parts": PARTS}) == [FAULT] == check_guard(home.instance("one").guard)
    # One of an earlier version says nothing of its parts.
    assert find_faults({"pid": 1, "resolver": 2, "proxy": 3}) == []


def test_one_that_does_not_run_or_does_not_answer_is_a_fault(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert check_guard(home.instance("one").guard) == ["the guard does not run; nothing leaves the instance"]
    monkeypatch.setattr(guard_status, "is_locked", lambda _: True)
    [said] = check_guard(home.instance("one").guard)
    assert said.startswith("the guard does not answer: ")


def test_one_that_is_busy_is_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow host it starts its parts for longer than an answer may take; one that has ended is not waited for."""
    answers: list[dict[str, Any] | ProvisionError] = [
        ProvisionError("the guard does not answer: timed out", where="", hint="")
    ] * 2
    answers += [
        {"parts": {"the resolver": PARTS["the resolver"] | {"ends": 0}}},
        {"parts": {"the proxy": PARTS["the proxy"]}},
    ]
    living = [True]

    def ask(*_: object, **__: object) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, ProvisionError):
            raise answer
        return answer

    monkeypatch.setattr(client, "ask_guard", ask)
    monkeypatch.setattr(guard_status, "is_locked", lambda _: living[0])
    assert find_faults(guard_status.wait_serving(home.instance("one").guard)) == [] and answers == []
    living[0] = False
    with pytest.raises(ProvisionError, match="does not run"):
        guard_status.wait_serving(home.instance("one").guard)


def test_list_says_it(home: Home) -> None:
    [found] = find_instances(home, Libvirt())
    assert found.faults == (FAULT,)
    whole = Found("one", seen={"journal", "namespace", "firewall", "tap", "domain"}, faults=(FAULT,))
    assert whole.note == FAULT == whole.to_json()["note"]


@pytest.mark.parametrize("line", ["ssh one", "exec one -- true", "cp one:/a b", "forward one 80"])
def test_who_goes_in_is_told(
    home: Home, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    became: list[Any] = []
    monkeypatch.setattr("ktrdr_vm.cli.ssh._become", lambda *words: became.append(words))
    monkeypatch.setattr("ktrdr_vm.instance.ssh_config.make_ssh_options", lambda _: {})
    run(monkeypatch, *line.split())
    said = capsys.readouterr()
    assert f"warning: one: {FAULT}" in said.err and FAULT not in said.out
    assert became, "it is told, and not kept out"


@pytest.mark.parametrize("line", ["attach one", "gate one ./gate.yaml"])
def test_who_runs_something_in_it_is_told(
    home: Home, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "gate.yaml").write_text(
        "- {name: g, hosts: all, tasks: [{name: t, ansible.builtin.debug: {msg: x}}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LoadedInstance, "connect", connect)
    monkeypatch.setattr("ktrdr_vm.run.mask.find_mask", lambda *_: connect())
    monkeypatch.setattr("ktrdr_vm.run.gates.run_gates", lambda *_, **__: connect())
    run(monkeypatch, *line.split())
    assert f"warning: one: {FAULT}" in capsys.readouterr().err
