"""What is a packet, and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.errors import UsageError
from ktrdr_vm.escalation.decision import is_preapproved
from ktrdr_vm.escalation.inbox import Limiter
from ktrdr_vm.escalation.inbox_protocol import ListRequest, SubmitRequest, answer_request
from ktrdr_vm.escalation.packet import KINDS, MAX_SECONDS, PacketError, parse_packet
from ktrdr_vm.escalation.store import MAX_PENDING, MAX_STORED, Answer, EscalationStore, FullError
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.policy.owner_policy import parse_policy
from ktrdr_vm.policy.schema import POLICY


def packet(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "network", "blocked": "the download", "why": "no build without it", "options": ["vendor it"],
        "recommendation": "allow it", "decision": "may I?", "evidence": "NXDOMAIN", "request": {"host": "api.example.com", "ports": [443]},
    } | changes  # fmt: skip


def test_six_parts_make_a_packet() -> None:
    made = parse_packet(packet())
    assert (made.kind, made.request, made.seconds) == ("network", {"host": "api.example.com", "ports": [443]}, 3600)
    assert parse_packet(made.to_json()) == made


@pytest.mark.parametrize("part", ["blocked", "why", "recommendation", "decision", "evidence", "options"])
def test_every_text_of_a_packet_can_be_written_and_shown(part: str) -> None:
    made = parse_packet(packet(**{part: ["\ud800 x"] if part == "options" else "\ud800 x"}))
    assert json.dumps(made.to_json(), ensure_ascii=False).encode() and parse_packet(made.to_json()) == made


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"why": " "}, "why"), ({"why": None}, "why"), ({"evidence": "x" * 20_000}, "evidence"), ({"options": []}, "options"),
        ({"options": ["x"] * 11}, "options"), ({"kind": "root"}, "kind"), ({"instance_id": "another"}, "unknown: instance_id"),
        ({"seconds": MAX_SECONDS + 1}, "seconds"), ({"seconds": True}, "seconds"), ({"request": {"host": "169.254.169.254"}}, "host"),
        ({"request": {"host": "a.example.com", "ports": [0]}}, "ports"), ({"request": {"host": "a.example.com", "all": True}}, "has the keys"),
        ({"kind": "mount", "request": {"source": "../x", "target": "/x"}}, ".."), ({"kind": "secret", "request": {"name": "../x"}}, "name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PacketError, match=told.replace(".", r"\.")):
        parse_packet(packet(**changes))


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(PacketError) as caught:
        parse_packet({"kind": "network"})
    assert len(str(caught.value).splitlines()) == 7


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_nothing_else_than_a_refusal_comes_of_garbage(content: object) -> None:
    with pytest.raises(PacketError):
        parse_packet(content)


def test_the_same_packet_twice_is_one_escalation_and_the_inbox_is_bounded(tmp_path: Path) -> None:
    store = EscalationStore(tmp_path / "e", "one")
    first, new = store.submit(parse_packet(packet()))
    assert (first.id, new) == ("e1", True)
    assert store.submit(parse_packet(packet()))[1] is False
    replies = [
        answer_request(store, SubmitRequest(packet(why=f"reason {number}")), lambda _: None) for number in range(100)
    ]
    assert sum("error" in reply for reply in replies) == 100 - (MAX_PENDING - 1)
    assert len(store.list()) == MAX_PENDING


def test_an_instance_has_so_many_escalations_in_all(tmp_path: Path) -> None:
    store = EscalationStore(tmp_path / "e", "one")
    for number in range(MAX_STORED):
        made, _ = store.submit(parse_packet(packet(why=str(number))))
        store.answer(made.id, "denied", Answer("me", "no", "t"))
    with pytest.raises(FullError, match=f"{MAX_STORED} escalations"):
        store.submit(parse_packet(packet(why="one more")))
    assert len(store.list()) == MAX_STORED


def test_states_follow_each_other_and_an_approval_ends_by_itself(tmp_path: Path) -> None:
    store = EscalationStore(tmp_path / "e", "one")
    for number in range(3):
        store.submit(parse_packet(packet(why=str(number))))
    answer = Answer("me", "because", "t", {}, 60)
    store.answer("e1", "denied", answer)
    with pytest.raises(UsageError, match="denied and cannot become approved"):
        store.answer("e1", "approved", answer)
    with pytest.raises(UsageError, match="pending and cannot become revoked"):
        store.answer("e2", "revoked", answer)
    assert (
        store.answer("e2", "approved", Answer("me", "", "t", {}, 60, (read_boot_id(), boottime() + 60))).current
        == "approved"
    )
    assert (
        store.answer("e3", "approved", Answer("me", "", "t", {}, 60, (read_boot_id(), boottime() - 1))).current
        == "expired"
    )
    with pytest.raises(UsageError, match="no escalation"):
        store.find("../../e1")


def test_an_approval_that_is_being_applied_is_pending_for_the_guest(tmp_path: Path) -> None:
    """It would go on without the secret that is still on its way."""
    store = EscalationStore(tmp_path / "e", "one")

    def show() -> tuple[str, Any]:
        shown = answer_request(store, ListRequest("e1"), lambda _: None)["escalations"]
        return shown["state"], shown["answer"]

    store.submit(parse_packet(packet()))
    with store.approving("e1", Answer("root", "yes", "now", {}, 60)) as settle:
        assert show() == ("pending", None)
        settle((read_boot_id(), boottime() + 60))
    state, answer = show()
    assert state == "approved" and answer["reason"] == "yes"


def test_an_approval_of_another_boot_has_ended(tmp_path: Path) -> None:
    store = EscalationStore(tmp_path / "e", "one")
    store.submit(parse_packet(packet()))
    assert (
        store.answer("e1", "approved", Answer("me", "", "t", {}, 60, ("another-boot", boottime() + 60))).current
        == "expired"
    )


def test_what_is_forged_behind_the_inbox_is_checked_again(tmp_path: Path) -> None:
    """The process that reads HTTP may be the guest's; the guard does not take its word."""
    store = EscalationStore(tmp_path / "e", "one")
    with pytest.raises(PacketError):
        answer_request(store, SubmitRequest(packet(kind="root")), lambda _: None)
    assert store.list() == []


def test_ten_thousand_packets_are_ten_in_a_minute() -> None:
    clock = [0.0]
    limiter = Limiter(clock=lambda: clock[0])
    assert sum(limiter.admit() for _ in range(10_000)) == 10 and limiter.refused == 9990
    clock[0] = 61
    assert limiter.admit()


def test_what_the_owner_approved_beforehand() -> None:
    text = "escalations:\n  approve:\n    - {host: '*.example.com', ports: [443], longest: 1h}\n    - {host: exact.test.org, ports: [22]}\n"
    policy = parse_policy(text).escalations

    def answers(request: dict[str, Any], seconds: int) -> bool:
        return is_preapproved(parse_packet(packet(request=request, seconds=seconds)), policy)

    assert answers({"host": "a.example.com", "ports": [443]}, 3600)
    for host, ports, seconds in (
        ("a.example.com", [443, 22], 60), ("a.example.com", [443], 3601), ("example.com", [443], 60),
        ("aexample.com", [443], 60), ("b.test.org", [22], 60),
    ):  # fmt: skip
        assert not answers({"host": host, "ports": ports}, seconds), host


def test_each_kind_can_be_sent_by_the_guest_and_allowed_by_the_owner() -> None:
    allowed = POLICY["escalations"]["schema"]["kinds"]["allowed"]
    command = (PROJECT / "ktrdr_vm/guest/data/ktrdr-escalate").read_text(encoding="utf-8")
    sent = re.findall(r"kinds\.add_parser\(\"(\w+)\"", command)
    assert set(KINDS) == set(allowed) == set(sent) - {"show", "list"}
