"""One decision for an escalation: the guard's pre-approvals and a person's command agree, and what is recorded is what
is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.egress import escalations as desk_module
from ktrdr_vm.egress.escalations import EscalationSupervisor
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import DocumentError, HostError, KtrdrError, UsageError
from ktrdr_vm.escalation.decision import check_request, is_preapproved
from ktrdr_vm.escalation.packet import KINDS, Packet, parse_packet
from ktrdr_vm.escalation.store import Answer, EscalationStore
from ktrdr_vm.policy.owner_policy import EscalationPolicy, OwnerPolicy, PreApproval, parse_policy

REQUESTS: dict[str, dict[str, Any]] = {
    "network": {"host": "docs.example.com", "ports": [443]},
    "secret": {"name": "token"},
    "mount": {"source": "/srv/sets", "target": "/sets", "readonly": True},
    "resources": {"memory": 4096},
    "decision": {},
}


def packet(kind: str = "network", seconds: int = 600, **request: Any) -> Packet:
    texts = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), "x")
    asked = {**REQUESTS[kind], **request}
    return parse_packet({"kind": kind, "options": ["a"], "request": asked, "seconds": seconds, **texts})


LINES = st.builds(
    EscalationPolicy,
    kinds=st.lists(st.sampled_from(KINDS), unique=True).map(tuple),
    longest=st.sampled_from([60, 600, 36000]),
    approved=st.lists(
        st.builds(
            PreApproval,
            host=st.sampled_from(["docs.example.com", "*.example.com", "a.example.com"]),
            ports=st.sampled_from([(443,), (22, 443)]),
            seconds=st.sampled_from([60, 600, 36000]),
        ),
        max_size=3,
    ).map(tuple),
)
PACKETS = st.builds(
    packet,
    kind=st.just("network"),
    seconds=st.sampled_from([1, 60, 600, 3600, 36000]),
    host=st.sampled_from(["docs.example.com", "*.example.com", "a.example.com", "example.com"]),
    ports=st.sampled_from([[443], [22], [22, 443]]),
) | st.sampled_from([packet(kind) for kind in KINDS])


@given(PACKETS, LINES)
def test_what_the_guard_approves_beforehand_a_person_could_approve_too(asked: Packet, line: EscalationPolicy) -> None:
    if is_preapproved(asked, line):
        assert check_request(asked, asked.request, asked.seconds, line) is None
        # And the owner's entry covers all of it.
        assert any(
            set(asked.request["ports"]) <= set(one.ports) and asked.seconds <= one.seconds for one in line.approved
        )


DOCS = PreApproval("docs.example.com", (443,), 36000)


@pytest.mark.parametrize(
    ("asked", "line", "wanted"),
    [
        (packet(), EscalationPolicy(approved=(DOCS,)), True),
        (packet(), EscalationPolicy(kinds=("decision",), approved=(DOCS,)), False),
        (packet(seconds=36000), EscalationPolicy(longest=600, approved=(DOCS,)), False),
        (packet(seconds=3600), EscalationPolicy(approved=(PreApproval("docs.example.com", (443,), 60),)), False),
        (packet(ports=[443, 22]), EscalationPolicy(approved=(DOCS,)), False),
        (packet(host="*.example.com"), EscalationPolicy(approved=(DOCS,)), False),
        (packet("decision"), EscalationPolicy(approved=(DOCS,)), False),
    ],
)
def test_each_bound_of_a_pre_approval(asked: Packet, line: EscalationPolicy, wanted: bool) -> None:
    assert is_preapproved(asked, line) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_bounded_by_the_owner_and_by_what_was_asked(kind: str) -> None:
    asked = packet(kind)
    every = EscalationPolicy(kinds=KINDS)
    assert check_request(asked, asked.request, 600, every) is None
    assert check_request(asked, asked.request, 601, every) is not None
    # A decision is given once, and has no duration.
    assert (check_request(asked, asked.request, 600, EscalationPolicy(KINDS, longest=599)) is None) == (
        kind == "decision"
    )
    assert check_request(asked, asked.request, 599, EscalationPolicy(KINDS, longest=599)) is None
    others = EscalationPolicy(kinds=tuple(one for one in KINDS if one != kind))
    refusal = check_request(asked, asked.request, 600, others)
    assert refusal is not None and refusal.hint and kind in refusal.message


@pytest.mark.parametrize(
    ("kind", "wider"),
    [
        ("network", {"host": "evil.example.com"}), ("network", {"ports": [443, 22]}), ("secret", {"name": "other"}),
        ("mount", {"source": "/srv"}), ("mount", {"source": "/srv/sets/../x"}), ("mount", {"target": "/x"}), ("mount", {"readonly": False}),
        ("resources", {"memory": 8192}), ("resources", {"vcpus": 2}),
    ],
)  # fmt: skip
def test_nothing_wider_than_what_was_asked(kind: str, wider: dict[str, Any]) -> None:
    asked = packet(kind)
    assert check_request(asked, {**asked.request, **wider}, 600, EscalationPolicy(kinds=KINDS)) is not None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{kinds: [decision], approve: [{host: a.example.com}]}", "escalations.approve[0]"),
        ("{longest: 10m, approve: [{host: a.example.com, longest: 10h}]}", "escalations.approve[0].longest"),
    ],
)
def test_a_policy_that_approves_beyond_itself_is_refused(text: str, place: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_policy(f"escalations: {text}\n", "policy.yaml")
    assert [problem.path for problem in caught.value.problems] == [place]


def test_without_a_length_of_its_own_a_pre_approval_keeps_to_the_longest() -> None:
    policy = parse_policy("escalations: {longest: 10m, approve: [{host: a.example.com}]}\n", "policy.yaml")
    assert policy.escalations.approved[0].seconds == 600


# -- recorded, then given ----------------------------------------------------------------------------------------------


class Granting:
    """The guard's part that gives. `act` happens while it does."""

    def __init__(self, act: Any = None) -> None:
        self.given: list[str] = []
        self._act = act

    def grant(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._act is not None:
            self._act()
        self.given.append(request["id"])
        return {"grant": {"seconds": 599.5}}


def arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granting: Granting, line: EscalationPolicy
) -> EscalationStore:
    monkeypatch.setattr(desk_module, "read_policy", lambda: OwnerPolicy(escalations=line))
    store = EscalationStore(tmp_path / "escalations", "one")
    supervisor = EscalationSupervisor(tmp_path, store, None, 0, (0, 0), Ledger(tmp_path / "ledger", "one"), granting)  # type: ignore[arg-type]
    made, _ = store.submit(packet())
    supervisor._arrived(made)
    return store


def test_a_pre_approval_is_recorded_with_the_end_that_the_guard_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granting = Granting()
    store = arrive(tmp_path, monkeypatch, granting, EscalationPolicy(approved=(DOCS,)))
    found = store.find("e1")
    assert (granting.given, found.state) == (["e1"], "approved")
    [row] = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert (row["kind"], row["rule"], row["message"]) == ("escalation", "e1", "network: x")
    assert found.answer is not None and found.answer.ends is not None and not found.answer.waiting


def test_a_policy_that_cannot_be_read_leaves_it_to_a_person_and_tells_the_guest_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> OwnerPolicy:
        raise HostError("the owner's policy cannot be read", where="/home/alice/policy.yaml", hint="chmod")

    monkeypatch.setattr(desk_module, "read_policy", refuse)
    store, ledger = EscalationStore(tmp_path / "escalations", "one"), Ledger(tmp_path / "ledger", "one")
    supervisor = EscalationSupervisor(tmp_path, store, None, 0, (0, 0), ledger, Granting())  # type: ignore[arg-type]
    made, _ = store.submit(packet())
    supervisor._arrived(made)
    assert store.find("e1").state == "pending"
    ledger.close()
    assert "cannot be read" in (tmp_path / "ledger").read_text()


def test_what_the_owners_line_forbids_waits_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granting = Granting()
    store = arrive(
        tmp_path, monkeypatch, granting, EscalationPolicy(kinds=("decision",), longest=600, approved=(DOCS,))
    )
    assert (granting.given, store.find("e1").state) == ([], "pending")


def test_a_denial_that_comes_between_finds_it_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given first and recorded afterwards, the grant would stand, denied, and could not be revoked."""
    met: list[str] = []

    def deny() -> None:
        try:
            EscalationStore(tmp_path / "escalations", "one").answer(
                "e1", "denied", Answer("somebody", "no", "2026-01-01T00:00:00Z")
            )
        except UsageError as error:
            met.append(error.message)

    store = arrive(tmp_path, monkeypatch, Granting(deny), EscalationPolicy(approved=(DOCS,)))
    assert met == ["e1 is approved and cannot become denied"]
    assert store.find("e1").state == "approved"


def test_what_could_not_be_given_waits_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KtrdrError("no room", hint="wait")

    store = arrive(tmp_path, monkeypatch, Granting(fail), EscalationPolicy(approved=(DOCS,)))
    assert store.find("e1").state == "pending"
    said = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert any("could not be approved beforehand" in row["message"] for row in said)


def test_the_owners_command_is_told_of_each_escalation_while_few_of_them_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    ended: list[int | None] = [None]

    def start(words: list[str], *, streams: Any, environment: dict[str, str], **_: Any) -> Any:
        said = os.read(streams.stdin, 100_000)
        started.append({"words": words, "packet": json.loads(said), **environment})
        return SimpleNamespace(poll=lambda: ended[0])

    monkeypatch.setattr(desk_module.process, "start", start)
    line = EscalationPolicy(hook=("/usr/bin/tell", "me"))
    monkeypatch.setattr(desk_module, "read_policy", lambda: OwnerPolicy(escalations=line))
    store, ledger = EscalationStore(tmp_path / "escalations", "one"), Ledger(tmp_path / "ledger", "one")
    supervisor = EscalationSupervisor(tmp_path, store, None, 0, (0, 0), ledger, Granting())  # type: ignore[arg-type]

    def arrive_again(number: int) -> None:
        supervisor._arrived(store.submit(packet(seconds=number))[0])

    for number in range(1, 6):
        arrive_again(number)
    assert [one["KTRDR_ESCALATION"] for one in started] == ["e1", "e2", "e3", "e4"]
    assert started[0]["words"] == ["/usr/bin/tell", "me"] and started[0]["packet"]["id"] == "e1"
    rows = [json.loads(row) for row in (tmp_path / "ledger").read_text().splitlines()]
    assert [row["rule"] for row in rows if "was not told" in row["message"]] == ["e5"]
    ended[0] = 0
    arrive_again(6)
    assert started[-1]["KTRDR_ESCALATION"] == "e6"
