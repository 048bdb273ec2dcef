"""Row 23: `egress test` and the real probe agree, for every kind of destination, with and without grants, through the
command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from click.testing import CliRunner
from laboratory import world
from laboratory.instances import ALLOW
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.cli.main import cli
from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.connection_check import judge_connection
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.profile.egress_rule import EgressRule

RESERVED = (("192.168.77.20", 22), (world.PRINTER, 80), (world.PRINTER, 443), (world.PRINTER, 9100))
NAMES = (
    "allowed",
    "alias",
    "git",
    "one.wild",
    "wild",
    "evilwild",
    "ten",
    "printer",
    "metadata",
    "mixed",
    "six",
    "other",
    "evil",
    "target",
)
ADDRESSES = (world.WEB, world.DATABASE, world.EVIL, world.PRINTER, "192.168.77.20", "192.168.77.21", world.METADATA, world.HOST_ADDRESS, "203.0.113.9")  # fmt: skip
CASES = [(f"{name}.test.lab", port) for name in NAMES for port in (22, 80, 443, 9100)]
CASES += [(address, port) for address in ADDRESSES for port in (22, 80, 443, 5432, 9100)]
# What must be open, so that two that agree on nothing are not enough.
OPEN = {
    ("allowed.test.lab", 80), ("allowed.test.lab", 443), ("alias.test.lab", 443), ("git.test.lab", 22), ("git.test.lab", 443),
    ("one.wild.test.lab", 443), ("printer.test.lab", 80), ("printer.test.lab", 443), ("printer.test.lab", 9100),
    ("mixed.test.lab", 443), ("six.test.lab", 443), (world.DATABASE, 5432), ("192.168.77.20", 22),
    (world.PRINTER, 9100),  # since its name was looked up
}  # fmt: skip
GRANTED = {
    ("other.test.lab", 443), ("other.test.lab", 9100), ("evil.test.lab", 80), (world.EVIL, 22), (world.EVIL, 443), ("203.0.113.9", 22),
    ("203.0.113.9", 443),
}  # fmt: skip


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    import yaml

    allow = [*yaml.safe_load(ALLOW), {"cidr": "192.168.77.20/32", "ports": [22]}]
    with NamespaceGuest(lab.home, allow, reserved=RESERVED) as made:
        yield made


def probe(guest: NamespaceGuest, host: str, port: int) -> bool:
    """As an ordinary client: look the name up, connect to its first address, say what the port is for."""
    try:
        address = str(IPv4Address(host))
    except ValueError:
        found = guest.lookup(host)
        if not found["addresses"]:
            return False
        address = found["addresses"][0]
    if port == 443:
        said = guest.probe("tls", address=address, port=port, name=None if address == host else host, limit=1.5).get(
            "said", ""
        )
        return "served by" in said
    if port == 80:
        request = f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"
        return guest.probe("http", address=address, port=port, send=request, limit=1.5).get("status") == 200
    said = guest.probe("tcp", address=address, port=port, limit=1.5).get("said", "")
    return f"echo {address}:{port}" in said


def compare(guest: NamespaceGuest) -> set[tuple[str, int]]:
    """Cases that are open, after every case agreed."""
    with ThreadPoolExecutor(16) as pool:
        real = dict(zip(CASES, pool.map(lambda case: probe(guest, *case), CASES), strict=True))
    with ThreadPoolExecutor(4) as pool:
        verdicts = dict(
            zip(CASES, pool.map(lambda case: judge_connection(guest.paths.guard, *case), CASES), strict=True)
        )
    assert {case: (verdict, real[case]) for case, verdict in verdicts.items() if verdict.allowed != real[case]} == {}
    return {case for case in CASES if real[case]}


def test_it_agrees_with_the_probe_also_under_grants(guest: NamespaceGuest) -> None:
    before = compare(guest)
    assert before == OPEN
    GuardClient(guest.paths.guard).grant("a", EgressRule(host="other.test.lab", ports=(443, 9100)), 600)
    GuardClient(guest.paths.guard).grant("b", EgressRule(host="evil.test.lab", ports=(80,)), 600)
    GuardClient(guest.paths.guard).grant("c", EgressRule(cidr=IPv4Network("203.0.113.0/24"), ports=(22, 443)), 600)
    wait_until(
        lambda: guest.lookup("other.test.lab")["rcode"] == 0 and guest.lookup("evil.test.lab")["rcode"] == 0,
        "the resolver knows",
    )
    # By address also under another name: the range of c holds evil's, and alias points to what a opened.
    shared = {("evil.test.lab", 22), ("evil.test.lab", 443), ("alias.test.lab", 9100)}
    assert compare(guest) == before | GRANTED | shared
    rules = {case: judge_connection(guest.paths.guard, *case).rule for case in sorted(GRANTED)}
    assert rules == {
        ("other.test.lab", 443): "grant:a", ("other.test.lab", 9100): "grant:a", ("evil.test.lab", 80): "grant:b",
        (world.EVIL, 22): "grant:c", (world.EVIL, 443): "grant:c", ("203.0.113.9", 22): "grant:c", ("203.0.113.9", 443): "grant:c",
    }  # fmt: skip
    for name in "abc":
        assert GuardClient(guest.paths.guard).revoke(name)
    wait_until(lambda: guest.lookup("other.test.lab")["rcode"] == 3, "the resolver knows")
    assert compare(guest) == before


def test_it_asks_the_enforcing_parts_and_not_the_plan(guest: NamespaceGuest) -> None:
    """An element taken out of a set behind the guard's back: the verdict follows, and so does the probe."""
    assert judge_connection(guest.paths.guard, "git.test.lab", 22).allowed
    guest.nft(f"delete element inet {guest.identity.table} names {{ {world.GIT} . 22 }}")
    assert not judge_connection(guest.paths.guard, "git.test.lab", 22).allowed
    assert not probe(guest, "git.test.lab", 22)


def test_the_command_says_what_decides(guest: NamespaceGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(guest.paths.home))

    def ask(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["egress", "test", guest.identity.instance_id, *words], standalone_mode=False)
        return done.return_value, done.stdout

    assert ask("allowed.test.lab", "443") == (
        0,
        "allowed  allowed.test.lab:443  tls  name  the proxy's list tls.names holds the name; only TLS with this server name passes\n",
    )
    code, said = ask("evil.test.lab", "443", "--json")
    row: dict[str, Any] = json.loads(said)
    assert (code, row["allowed"], row["kind"], row["rule"], row["host"], row["port"]) == (
        1,
        False,
        "dns",
        "name",
        "evil.test.lab",
        443,
    )
    # The question is the host's own: it is nothing that the guest was denied.
    assert guest.ledger(kind="dns", verdict="deny", name="never.asked.test.lab") == []
    assert ask("never.asked.test.lab", "443")[0] == 1
    assert guest.ledger(kind="dns", verdict="deny", name="never.asked.test.lab") == []


def test_the_services_of_the_gateway_are_what_the_guest_reaches_there(lab: Lab) -> None:
    read = {"host": "allowed.test.lab", "methods": ["GET"], "base_url_env": "API_URL"}
    profile = {"version": 1, "name": "net", "image": "none", "mode": "interactive", "egress": {"allow": [read]}}
    with NamespaceGuest(lab.home, profile=profile) as guest:
        for port, served in ((53, "dns"), (917, "escalation"), (918, ""), (919, "broker"), (920, ""), (916, "")):
            verdict = judge_connection(guest.paths.guard, guest.gateway, port)
            assert (verdict.allowed, verdict.kind) == (bool(served), served or "drop"), port
            real = guest.probe("tcp", address=guest.gateway, port=port, limit=1)["outcome"] == "connected"
            assert real == verdict.allowed, port


@pytest.mark.parametrize(
    ("host", "port"),
    [("x y", 443), ("", 443), ("*.test.lab", 443), ("::1", 443), ("allowed.test.lab", 0), ("a;b.c", 1)],
)
def test_what_is_no_destination_is_refused(guest: NamespaceGuest, host: str, port: int) -> None:
    with pytest.raises(UsageError):
        judge_connection(guest.paths.guard, host, port)


def test_without_a_guard_there_is_no_verdict(guest: NamespaceGuest) -> None:
    with pytest.raises(ProvisionError, match="does not answer"):
        judge_connection(guest.paths.guard.with_name("nobody"), world.WEB, 443)
