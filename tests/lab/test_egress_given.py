"""The proxy and the resolver's answers: a guest that goes where its own answer says is dialled there, without a second
question."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest, replace
from laboratory.recorder import wait_until
from test_egress_grants import name_rule

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.plan.guard_interface import GIVEN

NAME, SIBLING = "allowed.test.lab", "api.test.lab"
ALLOWED = [{"host": NAME, "ports": [80, 443]}, {"host": SIBLING, "ports": [443]}]
EVERYTHING_GIVEN = (
    replace("proxy.cfg", "set-var(txn.address) dst if hello given\n", "set-var(txn.address) dst if hello\n"),
    replace("proxy.cfg", " if hello !given\n", " if FALSE\n"),
)


@pytest.fixture(autouse=True)
def zone(lab: Lab) -> Iterator[None]:
    yield
    lab.world.dns.ttl = 60
    lab.world.reset_zone()


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    lab.world.dns.zone[NAME] = [("A", world.WEB), ("A", world.WILD)]
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def tls(guest: NamespaceGuest, address: str, name: str = NAME) -> str:
    """The address that served."""
    found = re.search(
        r"served by ([0-9.]+):443", guest.probe("tls", address=address, port=443, name=name).get("said", "")
    )
    return found[1] if found else ""


def http(guest: NamespaceGuest, address: str) -> str:
    request = f"GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n"
    found = re.search(
        r"served by ([0-9.]+):80", guest.probe("http", address=address, port=80, send=request).get("said", "")
    )
    return found[1] if found else ""


def is_given(guest: NamespaceGuest, address: str, name: str = NAME) -> bool:
    return ProxyControl(guest.paths.guard).matches(GIVEN, f"{name}@{address}")


def count_questions(guest: NamespaceGuest) -> int:
    """What the proxy has asked its resolver since it started."""
    found = re.search(r"sent:\s+(\d+)", ProxyControl(guest.paths.guard).ask("show resolvers guard"))
    assert found is not None
    return int(found[1])


def test_every_address_of_an_answer_is_dialled_as_the_guest_chose_and_nothing_is_asked_again(
    guest: NamespaceGuest,
) -> None:
    """Of two addresses one may be down: the guest's client goes to the next, and so does the proxy."""
    assert set(guest.lookup(NAME)["addresses"]) == {world.WEB, world.WILD}
    wait_until(lambda: is_given(guest, world.WEB) and is_given(guest, world.WILD), "the proxy was told")
    before = count_questions(guest)
    for address in (world.WEB, world.WILD):
        assert tls(guest, address) == address
        assert http(guest, address) == address
    assert count_questions(guest) == before
    rows = guest.ledger(kind="tls", verdict="allow", name=NAME)
    assert {row["address"] for row in rows} == {world.WEB, world.WILD}


def test_any_other_address_is_asked_for(guest: NamespaceGuest) -> None:
    """Row 4: also one that the resolver gave, but for another name."""
    guest.lookup(NAME)
    assert guest.lookup(SIBLING)["addresses"] == [world.OTHER]
    wait_until(lambda: is_given(guest, world.OTHER, SIBLING), "the proxy was told")
    for address in (world.EVIL, world.OTHER):
        assert tls(guest, address) in (world.WEB, world.WILD)
        assert http(guest, address) in (world.WEB, world.WILD)
    assert tls(guest, world.WEB, SIBLING) == world.OTHER
    assert count_questions(guest) >= 5


def test_without_the_comparison_the_guest_chooses_the_address(lab: Lab) -> None:
    with NamespaceGuest(lab.home, ALLOWED, sabotage=EVERYTHING_GIVEN) as guest:
        assert tls(guest, world.EVIL) == world.EVIL


def test_what_was_told_ends_with_the_answer(lab: Lab, guest: NamespaceGuest) -> None:
    """A name that has moved is dialled at its new address, wherever the guest still goes."""
    lab.world.dns.ttl = 2
    guest.lookup(NAME)
    wait_until(lambda: is_given(guest, world.WEB), "the proxy was told")
    lab.world.dns.zone[NAME] = [("A", world.OTHER)]
    wait_until(lambda: not is_given(guest, world.WEB), "it ended")
    assert tls(guest, world.WEB) == world.OTHER


def test_a_grant_and_its_end_forget_what_was_told(guest: NamespaceGuest) -> None:
    """The rule that judged the address may be another one now."""
    guest.lookup(NAME)
    wait_until(lambda: is_given(guest, world.WEB), "the proxy was told")
    GuardClient(guest.paths.guard).grant("one", name_rule("other.test.lab", 443), 600)
    assert not is_given(guest, world.WEB)
    guest.lookup("other.test.lab")
    wait_until(lambda: is_given(guest, world.OTHER, "other.test.lab"), "the proxy was told")
    assert tls(guest, world.OTHER, "other.test.lab") == world.OTHER
    GuardClient(guest.paths.guard).revoke("one")
    assert not is_given(guest, world.OTHER, "other.test.lab")
    assert tls(guest, world.OTHER, "other.test.lab") == ""


def test_a_proxy_that_was_killed_begins_with_none(guest: NamespaceGuest) -> None:
    guest.lookup(NAME)
    wait_until(lambda: is_given(guest, world.WEB), "the proxy was told")
    os.kill(GuardClient(guest.paths.guard).status()["proxy"], signal.SIGKILL)
    wait_until(lambda: tls(guest, world.EVIL) in (world.WEB, world.WILD), "it is back, and asks")
    assert not is_given(guest, world.WEB)


def test_a_proxy_that_hangs_does_not_hold_up_the_resolver(lab: Lab, guest: NamespaceGuest) -> None:
    """Ten fresh names are answered while it stands still; each would wait a second for it."""
    proxy = GuardClient(guest.paths.guard).status()["proxy"]
    os.kill(proxy, signal.SIGSTOP)
    try:
        lab.world.dns.ttl = 0
        for _ in range(10):
            assert guest.lookup(SIBLING, limit=3)["addresses"] == [world.OTHER]
    finally:
        os.kill(proxy, signal.SIGCONT)
    assert tls(guest, world.OTHER, SIBLING) == world.OTHER
