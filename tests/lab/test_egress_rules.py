"""Every egress attack from a guest without a VM: the real firewall, guard and tap, and a namespace with the guest's own
NIC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from laboratory import world
from laboratory.attacks import MAY_ARRIVE, Attack, judge, make_attacks, make_requests
from laboratory.instances import ALLOW
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest

ALLOWED = yaml.safe_load(ALLOW)
_EXAMPLES = make_attacks("10.0.0.0")
_REQUESTS = make_requests("10.0.0.0")


class Outcome:
    """What came of all attempts: the guest's answers, the ledger, and what arrived outside meanwhile."""

    def __init__(self, lab: Lab, guest: NamespaceGuest) -> None:
        self.guest = guest
        self.attacks, self.requests = make_attacks(guest.gateway), make_requests(guest.gateway)
        mark = lab.recorder.mark()
        self.answers = guest.probe_all([attack.probe for attack in self.attacks])
        self.arrived_by_attacks = lab.recorder.endpoints(mark)
        self.dns_by_attacks = {hit.name for hit in lab.recorder.hits(mark, "dns")}
        self.request_answers = guest.probe_all([request.probe for request in self.requests], at_once=4)
        self.arrived = lab.recorder.endpoints(mark)
        self.hits = lab.recorder.hits(mark)
        guest.ledger()
        # The proxy writes its line when a connection has ended. What is then still missing fails its own test.
        end = time.monotonic() + 3
        while self.missing() and time.monotonic() < end:
            time.sleep(0.05)

    def missing(self) -> list[str]:
        return [
            str(one)
            for one in (*self.attacks, *self.requests)
            if one.ledger and not self.guest.read_ledger(**one.ledger)
        ]


@pytest.fixture(scope="module")
def outcome(lab: Lab) -> Iterator[Outcome]:
    with NamespaceGuest(lab.home, ALLOWED) as guest:
        yield Outcome(lab, guest)


@pytest.mark.parametrize("number", range(len(_EXAMPLES)), ids=[str(attack) for attack in _EXAMPLES])
def test_attack(outcome: Outcome, number: int) -> None:
    attack: Attack = outcome.attacks[number]
    assert judge(attack, outcome.answers[number]) == ""
    if attack.ledger is not None:
        found: list[dict[str, Any]] = outcome.guest.read_ledger(**attack.ledger)
        assert found, f"no line of the ledger carries {attack.ledger}"
        assert all(
            row["time"].endswith("Z") and row["instance_id"] == outcome.guest.identity.instance_id for row in found
        )


@pytest.mark.parametrize("number", range(len(_REQUESTS)), ids=[str(request) for request in _REQUESTS])
def test_what_is_allowed_works(outcome: Outcome, number: int) -> None:
    request = outcome.requests[number]
    assert judge(request, outcome.request_answers[number]) == ""
    if request.ledger is not None:
        assert outcome.guest.read_ledger(**request.ledger)


def test_nothing_arrived_but_what_is_allowed(outcome: Outcome) -> None:
    assert outcome.arrived - MAY_ARRIVE == set()
    # The attacks alone: an allowed name at a foreign address lands at the name's own, and the guard asked for allowed
    # names.
    assert (
        outcome.arrived_by_attacks - {("tcp", world.WEB, 80), ("tcp", world.WEB, 443), ("udp", world.DNS, 53)} == set()
    )
    assert [hit for hit in outcome.hits if hit.server == "host"] == []


def test_no_question_went_out_for_a_name_that_is_not_allowed(outcome: Outcome) -> None:
    asked = {hit.name for hit in outcome.hits if hit.server == "dns"}
    assert {
        name for name in asked if name not in {rule.get("host") for rule in ALLOWED} | {"one.wild.test.lab"}
    } == set()
    assert "allowed.test.lab" in asked


def test_refused_addresses_are_in_no_set(outcome: Outcome) -> None:
    for name in ("names", "lan_names"):
        listed = outcome.guest.nft(f"list set inet {outcome.guest.identity.table} {name}")
        for address in ("10.0.0.1", world.PRINTER, world.METADATA, "127.0.0.1"):
            assert address not in listed
