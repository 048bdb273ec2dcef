"""The host's own network is a LAN also where its addresses are public: closed to every way out, and opened by the
owner's word alone."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest
from laboratory import servers
from laboratory.lab import Lab
from laboratory.namespaces import inside, ip, make_namespace, remove_namespace
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.on_link import find_on_link
from ktrdr_vm.profile.egress_rule import EgressRule

# Public, and in this lab nobody's but a neighbour's.
NETWORK, HOST, NEIGHBOUR = "11.77.0.0/24", "11.77.0.1", "11.77.0.9"
NAME = "neighbour.test.lab"
ALLOW = [{"host": NAME, "ports": [80, 22]}, {"cidr": "11.77.0.0/16", "ports": [9100]}]
HTTP = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"


@pytest.fixture
def neighbour(lab: Lab) -> Iterator[str]:
    """A host in the lab host's own network, with a name."""
    make_namespace("neighbours")
    ip("link add lan1 type veth peer name out netns neighbours")
    ip("link set lan1 up")
    ip(f"addr add {NEIGHBOUR}/24 dev out", "neighbours")
    ip("link set out up", "neighbours")
    with inside("neighbours"):
        servers.start_web(NEIGHBOUR, 80, lab.recorder)
        for port in (22, 9100):
            servers.start_echo(NEIGHBOUR, port, lab.recorder)
    lab.world.dns.zone[NAME] = [("A", NEIGHBOUR)]
    yield NEIGHBOUR
    lab.world.reset_zone()
    ip("link del lan1")
    remove_namespace("neighbours")


def join(joined: bool = True) -> None:
    ip(f"addr {'add' if joined else 'del'} {HOST}/24 dev lan1")


def reaches(guest: NamespaceGuest, port: int) -> bool:
    """Does the service say something? The proxy takes a connection before it has one itself."""
    return bool(guest.probe("tcp", address=NEIGHBOUR, port=port, limit=2).get("said"))


def try_all(guest: NamespaceGuest) -> dict[str, object]:
    """By name and by address, at once and after a question to the resolver."""
    return {
        "question": guest.lookup(NAME)["addresses"],
        "http": guest.probe("http", address=NEIGHBOUR, port=80, send=HTTP, patience=3).get("status"),
        "name": reaches(guest, 22),
        "range": reaches(guest, 9100),
    }


def test_a_neighbour_is_closed_to_every_way_out(lab: Lab, neighbour: str) -> None:
    join()
    assert IPv4Network(NETWORK) in find_on_link()
    with NamespaceGuest(lab.home, ALLOW) as guest:
        mark = lab.recorder.mark()
        found = try_all(guest)
        assert found["question"] == [] and found["http"] != 200 and not found["name"] and not found["range"], found
        assert [one for one in lab.recorder.endpoints(mark) if one[1] == neighbour] == []
        [line] = guest.ledger(kind="dns", verdict="deny", name=NAME)
        assert "network of this host" in line["message"]
        told = [row["message"] for row in guest.ledger(kind="guard") if "stays closed" in row["message"]]
        assert told == ["11.77.0.0/24 is a network of this host: it stays closed, though 11.77.0.0/16 is allowed"]
        with pytest.raises(KtrdrError, match="a network of this host"):
            GuardClient(guest.paths.guard).grant("g1", EgressRule(cidr=IPv4Network(f"{neighbour}/32"), ports=(22,)), 60)


def test_a_network_that_the_host_joins_is_closed_while_it_is_in_it(lab: Lab, neighbour: str) -> None:
    with NamespaceGuest(lab.home, ALLOW) as guest:
        # Before, the address is the internet's: whoever is there answers.
        assert reaches(guest, 9100)
        join()
        wait_until(lambda: not reaches(guest, 9100), "it is closed")
        join(False)
        wait_until(lambda: reaches(guest, 9100), "it is open again")


def test_the_owner_s_word_opens_one_address_and_port(lab: Lab, neighbour: str) -> None:
    join()
    owned = ((neighbour, 80), (neighbour, 22), (neighbour, 9100))
    allow = [{"host": NAME, "ports": [80, 22]}, {"cidr": f"{neighbour}/32", "ports": [9100]}]
    with NamespaceGuest(lab.home, allow, reserved=owned) as guest:
        assert try_all(guest) == {"question": [neighbour], "http": 200, "name": True, "range": True}
