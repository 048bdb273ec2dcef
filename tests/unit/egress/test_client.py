"""Every operation of a running guard has a method, and every method an operation; nobody else speaks to its socket."""

from __future__ import annotations

import inspect
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import client
from ktrdr_vm.egress.client import GuardClient, HeldCredentials
from ktrdr_vm.egress.delivered_values import DeliveredValues
from ktrdr_vm.egress.expiry import Deadlines
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.credentials import Brokers
from ktrdr_vm.egress.revision import RevisionKeeper
from ktrdr_vm.egress.telemetry.supervisor import TelemetrySupervisor
from ktrdr_vm.profile.egress_rule import EgressRule

PACKAGE = Path(__file__).resolve().parents[3] / "ktrdr_vm"
RULE = EgressRule(host="a.example", ports=(443,), reason="to see")
CALLS: dict[str, Callable[[GuardClient], Any]] = {
    "status": lambda one: one.status(),
    "flush": lambda one: one.flush(),
    "judge": lambda one: one.judge("a.example", "192.0.2.1", 443),
    "grant": lambda one: one.grant("e1", RULE, 60),
    "revoke": lambda one: one.revoke("e1"),
    "list_grants": lambda one: one.list_grants(),
    "expire_secret": lambda one: one.expire_secret("token", "/run/secrets/token", 60),
    "expire_loan": lambda one: one.expire_loan("e2", 60, module="m", message="memory 1024"),
    "cancel_expiry": lambda one: one.cancel_expiry("token", "/run/secrets/token"),
    "add_value": lambda one: one.add_value("token", b"value"),
    "list_values": lambda one: one.list_values(have=0, reader="r1"),
    "count_unread": lambda one: one.count_unread(),
    "give_credential": lambda one: one.give_credential("key", "value"),
    "take_credential": lambda one: one.take_credential("key"),
    "list_credentials": lambda one: one.list_credentials(),
    "pass_gate": lambda one: one.pass_gate("unit"),
    "begin_gates": lambda one: one.begin_gates(),
    "begin_run": lambda one: one.begin_run("r1"),
    "find_revision": lambda one: one.find_revision(),
    "follow_plan": lambda one: one.follow_plan("a" * 64),
}
# What a guard answers beyond that it is well.
REPLIES: dict[str, dict[str, Any]] = {
    "grant": {"grant": {"id": "e1", "rule": {"host": "a.example", "ports": [443]}, "reason": "to see", "seconds": 60}},
    "grants": {"grants": []},
    "revoke": {"revoked": True},
    "revision": {"revision": "0123456789ab-0-1"},
    "plan": {"revision": "0123456789ab-0-1"},
    "value_list": {"values": [["token", "dmFsdWU="]], "count": 1},
    "value_unread": {"unread": 0},
    "broker_list": {"held": ["key"], "open": [], "told": True},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def ask(_directory: Path, op: str, *, timeout: float, **fields: Any) -> dict[str, Any]:
        assert timeout > 0
        found.append((op, fields))
        return REPLIES.get(op, {"ok": True})

    monkeypatch.setattr(client, "ask_guard", ask)
    return found


def test_every_operation_has_a_method(asked: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    methods = {
        name for name, value in vars(GuardClient).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    assert methods == CALLS.keys()
    for call in CALLS.values():
        call(GuardClient(tmp_path))
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    config = {"telemetry": {"journal": str(tmp_path / "none")}, "instance_id": "one", "ledger": str(tmp_path / "l")}
    rooms: list[Any] = [
        object.__new__(one) for one in (Granting, Deadlines, DeliveredValues, Brokers, RevisionKeeper)
    ] + [TelemetrySupervisor(config, ledger, selectors.DefaultSelector(), socket.socket())]
    operations = {name for room in rooms for name in room.operations}
    assert {op for op, _ in asked} == operations | {"status", "flush", "judge"}


def test_values_are_given_and_returned_as_they_are(asked: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    guard = GuardClient(tmp_path)
    guard.add_value("token", b"value")
    assert asked[-1] == ("value_add", {"name": "token", "value": "dmFsdWU="})
    assert guard.list_values() == ((("token", b"value"),), 1)
    assert guard.list_credentials() == HeldCredentials(("key",), (), told=True)
    granted = guard.grant("e1", RULE, 60)
    assert (granted.rule, granted.seconds) == (RULE, 60.0)


def test_the_words_of_the_socket_stand_in_the_client_and_the_guard_only() -> None:
    found = [path for path in PACKAGE.rglob("*.py") if "ask_guard" in path.read_text()]
    assert [path.relative_to(PACKAGE).as_posix() for path in found] == ["egress/client.py"]
