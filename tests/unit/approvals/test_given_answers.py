"""Answers of a person: what is given, recorded, put off until the resume, and taken back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.approvals import apply
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.escalation.inbox_protocol import ListRequest, answer_request
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.host.clock import boottime
from ktrdr_vm.policy.owner_policy import EscalationPolicy, OwnerPolicy, parse_policy
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Secret as Entry

TEXTS: dict[str, Any] = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), "x")
REQUESTS: dict[str, dict[str, Any]] = {
    "network": {"host": "*.example.com", "ports": [443, 22]},
    "secret": {"name": "token"},
    "decision": {},
}


class Guard:
    """What was granted, and for how long; a grant has its expiry."""

    def __init__(self) -> None:
        self.granted: list[tuple[str, EgressRule, int]] = []
        self.revoked: list[str] = []

    def grant(self, grant_id: str, rule: EgressRule, seconds: int) -> Any:
        self.granted.append((grant_id, rule, seconds))
        return SimpleNamespace(seconds=float(seconds))

    def revoke(self, grant_id: str) -> bool:
        self.revoked.append(grant_id)
        return True


class Instance:
    """As much of a loaded instance as an answer uses. Its state is that of its journal."""

    def __init__(self, directory: Path) -> None:
        self.instance_id = "one"
        self.escalations = EscalationStore(directory / "escalations", "one")
        self.journal = SimpleNamespace(state="awake")
        self.paths = SimpleNamespace(journal=directory / "journal.json")
        self.guard = Guard()

    def ask(self, kind: str, seconds: int = 600) -> str:
        packet = {"kind": kind, "options": ["a"], "request": REQUESTS[kind], "seconds": seconds, **TEXTS}
        return self.escalations.submit(parse_packet(packet))[0].id

    def show(self, escalation_id: str) -> dict[str, Any]:
        """What the guest sees of it."""
        shown: dict[str, Any] = answer_request(self.escalations, ListRequest(escalation_id), lambda _: None)
        return shown["escalations"]  # type: ignore[no-any-return]


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Instance(tmp_path)
    monkeypatch.setattr(apply, "read_journal", lambda _: made.journal)
    monkeypatch.setattr(apply, "open_store", lambda one: one.escalations)
    return made


# An owner whose profiles reach nothing but one host, and whose secrets go nowhere else.
NARROW = parse_policy(
    "egress: {ceiling: [{host: only.example.org}]}\nsecrets: {uses: [{env: KTRDR_X, hosts: [only.example.org]}]}\n"
)


def test_a_network_request_is_bounded_by_its_kind_and_time_and_by_no_destination_of_the_owner(instance: Any) -> None:
    one = instance.ask("network")
    narrowed = {"host": "a.example.com", "ports": [443]}
    apply.approve(instance, one, NARROW, reason="for this once", request=narrowed, seconds=60)
    [(granted, rule, seconds)] = instance.guard.granted
    assert (granted, rule.host, rule.ports, rule.reason, seconds) == (
        one,
        "a.example.com",
        (443,),
        "for this once",
        60,
    )
    assert instance.show(one)["answer"] == {
        "reason": "for this once", "request": narrowed, "seconds": 60, "at": instance.show(one)["answer"]["at"],
    }  # fmt: skip
    apply.revoke_approval(instance, one, reason="done")
    assert instance.guard.revoked == [one] and instance.show(one)["state"] == "revoked"
    other = instance.ask("network", seconds=700)
    for words in ({"seconds": 701}, {"request": {"host": "b.example.org"}}, {"request": {"ports": [80]}}):
        with pytest.raises(UsageError):
            apply.approve(instance, other, NARROW, reason="more", **words)
    without = OwnerPolicy(escalations=EscalationPolicy(kinds=("decision",)))
    with pytest.raises(UsageError, match="does not allow network by escalation"):
        apply.approve(instance, other, without, reason="x")
    with pytest.raises(UsageError, match="requires a reason"):
        apply.approve(instance, other, NARROW, reason=" ")
    assert len(instance.guard.granted) == 1 and instance.show(other)["state"] == "pending"


def test_what_was_approved_while_it_sleeps_has_its_whole_time_from_the_resume_on(instance: Any) -> None:
    one = instance.ask("network")
    instance.journal.state = "suspended"
    apply.approve(instance, one, NARROW, reason="later", seconds=60)
    assert instance.guard.granted == [] and instance.show(one)["state"] == "pending"
    instance.journal.state = "awake"
    [given] = apply.reapply(instance, NARROW)
    assert [(granted, seconds) for granted, _, seconds in instance.guard.granted] == [(one, 60)]
    assert given.answer is not None and given.answer.ends is not None
    assert 55 < given.answer.ends[1] - boottime() <= 60 and instance.show(one)["state"] == "approved"


def test_a_decision_is_an_answer_in_words(instance: Any) -> None:
    one, other = instance.ask("decision"), instance.ask("decision", seconds=60)
    apply.approve(instance, one, NARROW, reason="the second way")
    apply.deny(instance, other, reason="neither")
    assert [(instance.show(each)["state"], instance.show(each)["answer"]["reason"]) for each in (one, other)] == [
        ("approved", "the second way"),
        ("denied", "neither"),
    ]


def test_a_secret_that_the_guest_keeps_is_not_recorded_as_revoked(
    instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = instance.ask("secret")
    done: list[str] = []

    class Secret:
        def create(self) -> None:
            done.append("delivered")

        def remove(self) -> None:
            if done[-1] == "delivered":
                done.append("kept")
                raise ProvisionError("the guest keeps it", where="one", hint="again")
            done.append("removed")

    monkeypatch.setattr(apply, "_check_source", lambda *_: {"env": "KTRDR_X"})
    opened: list[str] = []

    def open_secret(_: object, entry: Entry) -> Secret:
        opened.append(entry.path)
        return Secret()

    monkeypatch.setattr(apply, "_open_secret", open_secret)
    apply.approve(instance, one, NARROW, reason="x")
    assert (opened, done) == (["/run/secrets/token"], ["delivered"])
    with pytest.raises(ProvisionError):
        apply.revoke_approval(instance, one, reason="over")
    assert instance.show(one)["state"] == "approved"
    apply.revoke_approval(instance, one, reason="over")
    assert done == ["delivered", "kept", "removed"] and instance.show(one)["state"] == "revoked"


def test_a_run_waits_as_long_as_the_owner_says_and_not_for_what_is_answered(
    instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, waited = instance.ask("decision"), [0.0]
    monkeypatch.setattr(apply, "seconds_since", lambda _: waited[0])
    policy = parse_policy("escalations: {wait: 5m}\n")
    for waited[0], stops in ((299, ["", ""]), (300, [one, ""]), (599, [one, ""]), (600, [one, one])):
        # Ten minutes, unless the owner says otherwise.
        assert [apply.find_stop(instance, line) for line in (policy, OwnerPolicy())] == stops
    assert apply.find_pending(instance) == [one]
    apply.deny(instance, one, reason="no")
    assert apply.find_stop(instance, policy) == "" and apply.find_pending(instance) == []
