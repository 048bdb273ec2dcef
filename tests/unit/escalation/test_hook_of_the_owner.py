"""What the owner's policy says of an escalation that arrives: the command that learns of it, and how long a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.approvals import apply
from ktrdr_vm.egress import escalations as module
from ktrdr_vm.egress.escalations import EscalationSupervisor
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import EscalationStop, HostError
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Answer, EscalationStore
from ktrdr_vm.policy.owner_policy import EscalationPolicy, OwnerPolicy

OWNER = (12345, 12346)
HOOK = ("/usr/local/bin/tell-me", "--now")


class Started:
    """A command that was started; it runs until `code` is set."""

    def __init__(self, words: list[str], said: bytes, options: dict[str, Any]) -> None:
        self.words, self.said, self.options = words, said, options
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    made: list[Started] = []

    def start(words: list[str], *, streams: Any, **options: Any) -> Started:
        made.append(Started(words, os.read(streams.stdin, 1 << 20), options))
        return made[-1]

    monkeypatch.setattr(module.process, "start", start)
    monkeypatch.setattr(module, "read_policy", lambda: OwnerPolicy(escalations=EscalationPolicy(hook=HOOK)))
    return made


def arrive(tmp_path: Path, supervisor: EscalationSupervisor, count: int = 1) -> None:
    texts = dict.fromkeys(("blocked", "why", "recommendation", "evidence"), "x")
    for _ in range(count):
        number = len(supervisor.store.list())
        packet = {"kind": "decision", "options": ["a"], "request": {}, "seconds": 600, "decision": f"d{number}"}
        supervisor._arrived(supervisor.store.submit(parse_packet({**packet, **texts}))[0])


@pytest.fixture
def supervisor(tmp_path: Path) -> EscalationSupervisor:
    store, ledger = EscalationStore(tmp_path / "escalations", "one"), Ledger(tmp_path / "ledger", "one")
    return EscalationSupervisor(tmp_path, store, None, 0, OWNER, ledger, None)  # type: ignore[arg-type]


def test_it_is_started_as_the_owner_with_the_packet(
    tmp_path: Path, supervisor: EscalationSupervisor, started: list[Started]
) -> None:
    arrive(tmp_path, supervisor)
    [one] = started
    assert (one.words, one.options["owner"], one.options["cwd"]) == (list(HOOK), OWNER, Path("/"))
    assert one.options["environment"] == {"KTRDR_INSTANCE_ID": "one", "KTRDR_ESCALATION": "e1"}
    packet = json.loads(one.said)
    assert (packet["id"], packet["decision"], packet["why"]) == ("e1", "d0", "x") and one.said.endswith(b"\n")


def test_four_run_at_once_and_one_that_ended_makes_room(
    tmp_path: Path, supervisor: EscalationSupervisor, started: list[Started]
) -> None:
    arrive(tmp_path, supervisor, 6)
    assert len(started) == 4
    rows = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [row["rule"] for row in rows if "was not told" in row.get("message", "")] == ["e5", "e6"]
    started[2].code = 1
    arrive(tmp_path, supervisor)
    assert [one.options["environment"]["KTRDR_ESCALATION"] for one in started] == ["e1", "e2", "e3", "e4", "e7"]


def test_one_that_cannot_be_started_is_a_line_of_the_ledger(
    tmp_path: Path, supervisor: EscalationSupervisor, started: list[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HostError("the program tell-me is not installed", hint="install it")

    monkeypatch.setattr(module.process, "start", refuse)
    arrive(tmp_path, supervisor)
    assert "could not be started" in (tmp_path / "ledger").read_text()
    assert supervisor.store.find("e1").state == "pending"


def test_a_run_goes_on_for_as_long_as_the_owner_says(
    tmp_path: Path, supervisor: EscalationSupervisor, started: list[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(tmp_path, supervisor)
    waited = [599.0]
    monkeypatch.setattr(apply, "seconds_since", lambda _: waited[0])
    instance: Any = SimpleNamespace(escalations=supervisor.store)
    assert apply.find_stop(instance, OwnerPolicy()) == ""
    waited[0] = 600.0
    assert apply.find_stop(instance, OwnerPolicy()) == "e1"
    assert apply.find_stop(instance, OwnerPolicy(escalations=EscalationPolicy(wait=601))) == ""
    supervisor.store.answer("e1", "denied", Answer("me", "no", "2026-01-01T00:00:00Z"))
    assert apply.find_stop(instance, OwnerPolicy()) == ""
    assert EscalationStop("x", hint="y").exit_code == 6
