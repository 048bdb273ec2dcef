"""What the host's own name servers do to the resolver: answers that are cut, servers that refer to others, and what
resolv.conf may contain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dns.message
import dns.rrset
import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import NamespaceGuest
from laboratory.servers import Dns

from ktrdr_vm.host.name_servers import RESOLV_CONF
from ktrdr_vm.profile.egress_rule import EgressRule

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


class _Referring(Dns):
    """A name server that was taken off a zone: it refers to others, and resolves nothing."""

    def answer(self, wire: bytes) -> bytes:
        reply = dns.message.make_response(dns.message.from_wire(wire))
        reply.authority.append(dns.rrset.from_text("lab.", 60, "IN", "NS", "ns.elsewhere.lab."))
        return reply.to_wire()


@contextmanager
def resolv_conf(text: str) -> Iterator[None]:
    before = RESOLV_CONF.read_text()
    RESOLV_CONF.write_text(text)
    try:
        yield
    finally:
        RESOLV_CONF.write_text(before)


def test_a_server_that_refers_to_others_is_passed_over(lab: Lab) -> None:
    with inside("internet"):
        _Referring(world.OTHER, lab.world.recorder)
    with (
        resolv_conf(f"nameserver {world.OTHER}\nnameserver {world.DNS}\n"),
        NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as guest,
    ):
        assert guest.lookup("allowed.test.lab")["addresses"] == [world.WEB]


class _OverTcp(Dns):
    """A network that drops DNS over UDP."""

    def _read(self) -> None:
        return


def test_options_use_vc_asks_over_tcp_alone(lab: Lab) -> None:
    with inside("internet"):
        server = _OverTcp(world.WILD, lab.world.recorder)
    server.zone["allowed.test.lab"] = [("A", world.WEB)]
    with (
        resolv_conf(f"nameserver {world.WILD}\noptions timeout:1 use-vc\n"),
        NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as guest,
    ):
        assert guest.lookup("allowed.test.lab")["addresses"] == [world.WEB]


def test_a_router_that_announces_its_link_local_address_ends_no_guard(lab: Lab) -> None:
    """As NetworkManager writes it. nftables has no scope, so the address stands there without it."""
    with (
        resolv_conf(f"nameserver fe80::1%uplink\nnameserver {world.DNS} # the second\n"),
        NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as guest,
    ):
        assert guest.lookup("allowed.test.lab")["addresses"] == [world.WEB]


def test_the_single_label_of_a_mirror_is_searched_as_on_the_host(lab: Lab) -> None:
    profile = {"version": 1, "name": "net", "image": "none", "egress": {"allow": [{"preset": "debian"}]}}
    mirror = EgressRule(host="allowed", ports=(80,), preset="debian", reason="preset debian")
    with (
        resolv_conf(f"domain test.lab\nnameserver {world.DNS}\n"),
        NamespaceGuest(lab.home, profile=profile, presets=(("debian", (mirror,)),)) as guest,
    ):
        assert guest.lookup("allowed")["addresses"] == [world.WEB]
        request = "GET / HTTP/1.1\r\nHost: allowed\r\nConnection: close\r\n\r\n"
        assert guest.probe("http", address=world.WEB, port=80, send=request)["status"] == 200
