"""What the host's own name servers do to the resolver: answers that are cut, and servers that are silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest

MANY = "many.test.lab"


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    lab.world.dns.zone[MANY] = [("A", f"203.0.113.{number}") for number in range(100, 250)]
    try:
        with NamespaceGuest(lab.home, [{"host": MANY, "ports": [443, 22]}]) as made:
            yield made
    finally:
        lab.world.reset_zone()


def test_an_answer_that_was_cut_is_asked_for_again_over_tcp(lab: Lab, guest: NamespaceGuest) -> None:
    """150 addresses need 2.4 kB, more than any answer over UDP that is asked for. Without the second question nothing
    would be open."""
    answer = guest.lookup(MANY)
    assert MANY in lab.world.dns.cut
    assert answer["rcode"] == 0 and len(answer["addresses"]) > 1
    assert set(answer["addresses"]) <= {value for _, value in lab.world.dns.zone[MANY]}
    # Every address that the guest was told is one that it may use.
    address = answer["addresses"][-1]
    assert guest.probe("tcp", address=address, port=22)["said"] == f"echo {address}:22\n"
