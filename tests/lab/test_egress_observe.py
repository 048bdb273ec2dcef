"""Observe mode: what is public is reached and recorded, what is reserved stays closed, and the suggestion is what would
have sufficed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from laboratory import world
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.egress.connection_check import judge_connection
from ktrdr_vm.report.egress_summary import sum_up_egress
from ktrdr_vm.report.suggest import render_suggestion

PROFILE = {
    "version": 1,
    "name": "observed",
    "image": "none",
    "egress": {"mode": "observe", "allow": [{"host": "allowed.test.lab", "ports": [443]}]},
}


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, profile=PROFILE) as made:
        yield made


def request(name: str) -> str:
    return f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n"


def test_what_is_public_is_reached_by_its_name_and_recorded(guest: NamespaceGuest) -> None:
    assert (
        f"served by {world.WEB}:443"
        in guest.probe("tls", address=world.EVIL, port=443, name="allowed.test.lab")["said"]
    )
    assert (
        f"served by {world.OTHER}:443"
        in guest.probe("tls", address=world.EVIL, port=443, name="other.test.lab")["said"]
    )
    assert f"served by {world.EVIL}:443" in guest.probe("tls", address=world.EVIL, port=443, name=None)["said"]
    assert guest.probe("http", address=world.WEB, port=80, send=request("evil.test.lab"))["status"] == 200
    assert guest.lookup("git.test.lab")["addresses"] == [world.GIT]
    assert guest.probe("tcp", address=world.GIT, port=22)["said"] == f"echo {world.GIT}:22\n"
    for wanted in (
        {"kind": "tls", "verdict": "allow", "name": "allowed.test.lab", "rule": "name"},
        {"kind": "tls", "verdict": "allow", "name": "other.test.lab", "rule": "observe"},
        {"kind": "tls", "verdict": "allow", "address": world.EVIL, "name": "", "rule": "observe"},
        {"kind": "http", "verdict": "allow", "name": "evil.test.lab", "rule": "observe"},
        {"kind": "tcp", "verdict": "allow", "name": "git.test.lab", "port": 22, "rule": "observe"},
        {"kind": "dns", "verdict": "allow", "name": "git.test.lab", "rule": "observe"},
    ):
        wait_until(lambda wanted=wanted: guest.ledger(**wanted), f"the ledger has {wanted}")  # type: ignore[misc]
    verdict = judge_connection(guest.paths.guard, "other.test.lab", 443)
    assert (verdict.allowed, verdict.rule) == (True, "observe")


def test_what_is_reserved_or_the_host_or_no_tcp_stays_closed(lab: Lab, guest: NamespaceGuest) -> None:
    mark = lab.recorder.mark()
    for address in (world.PRINTER, world.METADATA, world.HOST_ADDRESS, guest.gateway, "10.0.0.1"):
        for port in (22, 80, 443, world.HOST_SERVICE_PORT):
            assert guest.probe("tcp", address=address, port=port, limit=0.3)["outcome"] == "timeout", (address, port)
    assert guest.probe("udp", address=world.EVIL, port=9999, limit=0.5)["outcome"] == "timeout"
    assert guest.probe("dns", address=world.EVIL, name="allowed.test.lab", limit=0.5)["outcome"] == "timeout"
    for name in ("printer", "metadata", "loopback", "ten"):
        assert guest.lookup(f"{name}.test.lab")["answers"] == 0
    # The name's own address is refused; the one that the guest dialled is public, and that is where it goes.
    assert (
        f"served by {world.WEB}:80"
        in guest.probe("http", address=world.WEB, port=80, send=request("printer.test.lab"))["said"]
    )
    assert guest.lookup("allowed.test.lab", type=16)["answers"] == 0
    assert [packet for packet in lab.recorder.packets(mark) if packet.network == "lan"] == []
    assert lab.recorder.hits(mark, "host") == []
    assert not judge_connection(guest.paths.guard, world.PRINTER, 443).allowed


def test_the_suggestion_is_what_would_have_sufficed(lab: Lab, guest: NamespaceGuest) -> None:
    rows = guest.ledger()
    allowed, _ = sum_up_egress(rows, ())
    observed: list[dict[str, Any]] = [vars(row) for row in allowed if row.rule == "observe"]
    text = render_suggestion(observed)
    rules = yaml.safe_load(text)["egress"]["allow"]
    hosts = {rule.get("host") or rule["cidr"]: rule["ports"] for rule in rules}
    assert hosts["other.test.lab"] == [443] and hosts["evil.test.lab"] == [80] and hosts["git.test.lab"] == [22]
    assert "allowed.test.lab" not in hosts
    with NamespaceGuest(lab.home, [*rules, *PROFILE["egress"]["allow"]]) as enforced:  # type: ignore[index]
        assert (
            f"served by {world.OTHER}:443"
            in enforced.probe("tls", address=world.OTHER, port=443, name="other.test.lab")["said"]
        )
        assert enforced.probe("http", address=world.EVIL, port=80, send=request("evil.test.lab"))["status"] == 200
        assert enforced.lookup("git.test.lab")["addresses"] == [world.GIT]
        assert enforced.probe("tcp", address=world.GIT, port=22)["said"] == f"echo {world.GIT}:22\n"
