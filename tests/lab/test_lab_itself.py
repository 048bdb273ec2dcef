"""The lab is what it says: closed, complete, and able to see an attack that gets through."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside, require_own_namespace
from laboratory.netguest import NamespaceGuest
from laboratory.probes import run
from laboratory.recorder import wait_until


def test_nothing_is_sent_from_the_machines_own_namespace(lab: Lab) -> None:
    require_own_namespace()
    with inside("internet"):
        require_own_namespace()
    require_own_namespace()


def test_the_only_ways_out_end_in_the_lab(lab: Lab) -> None:
    assert sorted(path.name for path in Path("/sys/class/net").iterdir() if not path.name.startswith("kv")) == [
        "lan0",
        "lo",
        "uplink",
    ]
    with inside("internet"):
        assert sorted(os.listdir("/proc/thread-self/net/dev_snmp6")) == ["lo", "out"]


def test_any_address_is_answered_and_seen(lab: Lab) -> None:
    mark = lab.recorder.mark()
    for address in (world.EVIL, "192.0.2.1", "93.184.216.34"):
        assert run({"kind": "tcp", "address": address, "port": 22})["said"] == f"echo {address}:22\n"
        assert ("tcp", address, 22) in lab.recorder.endpoints(mark)
    assert run({"kind": "tcp", "address": world.PRINTER, "port": 9100})["outcome"] == "connected"
    assert (
        run({"kind": "http", "address": world.METADATA, "port": 80, "send": "GET / HTTP/1.0\r\nHost: x\r\n\r\n"})[
            "status"
        ]
        == 200
    )
    assert run({"kind": "tls", "address": world.EVIL, "port": 443, "name": "evil.test.lab"})["outcome"] == "answered"
    assert "evil.test.lab" in {hit.name for hit in lab.recorder.hits(mark, "tls")}
    with socket.create_connection((world.INTERNET_V6, 22), 5):
        pass
    wait_until(lambda: ("tcp", world.INTERNET_V6, 22) in lab.recorder.endpoints(mark), "the packet is seen")


def test_the_name_server_answers_from_its_zone_and_remembers_questions(lab: Lab) -> None:
    mark = lab.recorder.mark()
    found = run({"kind": "dns", "address": world.DNS, "name": "alias.test.lab"})
    assert (found["rcode"], found["addresses"]) == (0, [world.OTHER])
    assert run({"kind": "dns", "address": world.DNS, "name": "nothing.test.lab", "over": "tcp"})["rcode"] == 3
    assert [hit.name for hit in lab.recorder.hits(mark, "dns")] == ["alias.test.lab", "nothing.test.lab"]


def test_without_any_protection_an_attack_arrives(lab: Lab) -> None:
    """The control of all that follows: a guest without rules, with forwarding on, reaches the world."""
    with NamespaceGuest(lab.home) as guest:
        guest.guard.remove()
        guest.firewall.remove()
        # As on a host that forwards for its guests.
        world.ip(f"link set {guest.identity.tap} netns {os.getpid()}", guest.identity.namespace)
        world.ip(f"addr add {guest.gateway}/30 dev {guest.identity.tap}")
        world.ip(f"link set {guest.identity.tap} up")
        Path("/proc/sys/net/ipv4/conf", guest.identity.tap, "forwarding").write_text("1")
        mark = lab.recorder.mark()
        assert guest.probe("tcp", address=world.EVIL, port=22)["outcome"] == "connected"
        assert guest.probe("tcp", address=world.PRINTER, port=9100)["outcome"] == "connected"
        assert guest.probe("udp", address=world.EVIL, port=9999)["outcome"] == "answered"
        assert {
            ("tcp", world.EVIL, 22),
            ("tcp", world.PRINTER, 9100),
            ("udp", world.EVIL, 9999),
        } <= lab.recorder.endpoints(mark)


@pytest.mark.parametrize("name", ["allowed.test.lab", "git.test.lab"])
def test_a_namespace_guest_gets_names_from_its_guard(lab: Lab, name: str) -> None:
    with NamespaceGuest(lab.home, [{"host": name, "ports": [443, 22]}]) as guest:
        assert guest.lookup(name)["addresses"] == [value for _, value in world.ZONE[name]]
