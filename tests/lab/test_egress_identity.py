"""Rows 11 and 12: a guest that is not who it says, and one that speaks IPv6. Frames go out of the guest's NIC as they
are."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside, ip
from laboratory.netguest import INTERFACE, NamespaceGuest, replace
from laboratory.recorder import wait_until

from ktrdr_vm.plan.guard_interface import GUEST_MAC

OTHER_MAC = "52:54:00:00:00:99"
NO_ANTISPOOF = "counter name spoofed drop"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    udp = struct.pack("!4H", 40000, port, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(udp),
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as made:
        yield made


def send(guest: NamespaceGuest, frame: bytes, times: int = 1) -> None:
    assert guest.probe("frame", interface=INTERFACE, frame=frame.hex(), times=times)["outcome"] == "sent"


def ethernet(
    guest: NamespaceGuest, packet: bytes, *, kind: int = 0x0800, source: str = "", destination: str = ""
) -> bytes:
    return mac(destination or guest.host_mac) + mac(source or GUEST_MAC) + struct.pack("!H", kind) + packet


def dns_asked(lab: Lab, mark: tuple[int, int]) -> int:
    return len(lab.recorder.hits(mark, "dns"))


def test_the_frame_that_is_spoofed_below_passes_when_it_is_honest(lab: Lab, guest: NamespaceGuest) -> None:
    """The control: the same bytes with the guest's own MAC and address reach the resolver."""
    mark = lab.recorder.mark()
    send(guest, ethernet(guest, udp_packet(guest.address, guest.gateway, 53, question("allowed.test.lab"))))
    # More than once if the answer takes long.
    wait_until(lambda: dns_asked(lab, mark) > 0, "the resolver asks for the name", 20)


@pytest.mark.parametrize("lie", ["mac", "address", "address outside", "neighbour"])
def test_a_spoofed_packet_reaches_nothing(lab: Lab, guest: NamespaceGuest, lie: str) -> None:
    source = {"address": guest.gateway, "address outside": "198.51.100.77", "neighbour": "10.213.0.3"}.get(
        lie, guest.address
    )
    mark = lab.recorder.mark()
    frame = ethernet(
        guest,
        udp_packet(source, guest.gateway, 53, question("allowed.test.lab")),
        source=OTHER_MAC if lie == "mac" else "",
    )
    send(guest, frame, times=5)
    assert sum(row["count"] for row in guest.ledger(kind="drop", rule="spoofed")) == 5
    assert lab.recorder.packets(mark) == []


def test_without_the_check_a_foreign_mac_is_served(lab: Lab) -> None:
    sabotage = replace("ruleset.nft", NO_ANTISPOOF, "accept")
    with NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}], sabotage=(sabotage,)) as guest:
        mark = lab.recorder.mark()
        send(
            guest,
            ethernet(
                guest, udp_packet(guest.address, guest.gateway, 53, question("allowed.test.lab")), source=OTHER_MAC
            ),
        )
        wait_until(lambda: dns_asked(lab, mark) > 0, "the resolver asks for the name", 20)
        assert guest.ledger(kind="drop", rule="spoofed") == []


def test_a_changed_mac_and_a_second_address_are_cut_off(lab: Lab, guest: NamespaceGuest) -> None:
    """As a root shell does it, with ip."""
    assert guest.lookup("allowed.test.lab")["answers"] == 1
    ip(f"link set {INTERFACE} address {OTHER_MAC}", guest.namespace)
    assert guest.lookup("allowed.test.lab", limit=1)["outcome"] in ("timeout", "error")
    ip(f"link set {INTERFACE} address {GUEST_MAC}", guest.namespace)
    ip(f"route replace default via {guest.gateway}", guest.namespace)
    assert guest.lookup("allowed.test.lab")["answers"] == 1
    ip(f"addr flush dev {INTERFACE}", guest.namespace)
    ip(f"addr add 10.213.0.9/8 dev {INTERFACE}", guest.namespace)
    assert guest.lookup("allowed.test.lab", limit=1)["outcome"] in ("timeout", "error")


def test_gratuitous_arp_changes_no_neighbour(lab: Lab, guest: NamespaceGuest) -> None:
    def neighbours() -> str:
        return ip(f"neigh show dev {guest.identity.tap}", guest.identity.namespace)

    before = neighbours()
    for claimed in (guest.address, guest.gateway, world.HOST_ADDRESS, world.PRINTER):
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + (mac(OTHER_MAC) + socket.inet_aton(claimed)) * 2
        send(guest, ethernet(guest, body, kind=0x0806, source=OTHER_MAC, destination="ff:ff:ff:ff:ff:ff"), times=3)
    assert guest.lookup("allowed.test.lab")["answers"] == 1
    assert neighbours() == before
    assert f"{guest.address} lladdr {GUEST_MAC} PERMANENT" in before
    assert OTHER_MAC not in ip("neigh show", guest.identity.namespace) + ip("neigh show")


def test_arp_tells_nothing_of_the_hosts_other_addresses(lab: Lab, guest: NamespaceGuest) -> None:
    for wanted in (world.HOST_ADDRESS, world.HOST_LAN_ADDRESS, world.PRINTER):
        ip(f"route replace {wanted}/32 dev {INTERFACE}", guest.namespace)
        assert guest.probe("udp", address=wanted, port=9, limit=1)["outcome"] in ("timeout", "error")
        assert "lladdr" not in ip(f"neigh show {wanted}", guest.namespace)


@pytest.mark.parametrize(
    ("what", "kind", "destination"),
    [
        ("vlan", 0x8100, ""),
        ("stp", 0x0026, "01:80:c2:00:00:00"),
        ("lldp", 0x88CC, "01:80:c2:00:00:0e"),
        ("q-in-q", 0x88A8, ""),
    ],
)
def test_frames_that_are_no_ip_pass_nowhere(
    lab: Lab, guest: NamespaceGuest, what: str, kind: int, destination: str
) -> None:
    mark = lab.recorder.mark()
    inner = struct.pack("!HH", 5, 0x0800) + udp_packet(guest.address, guest.gateway, 53, question("allowed.test.lab"))
    send(guest, ethernet(guest, inner, kind=kind, destination=destination), times=3)
    assert guest.lookup("nothing.test.lab")["rcode"] == 3
    assert lab.recorder.packets(mark) == []


@pytest.mark.parametrize("destination", ["host", "lan", "world", "everyone"])
def test_ipv6_reaches_nothing(lab: Lab, guest: NamespaceGuest, destination: str) -> None:
    target = {"host": "fe80::1", "lan": "fe80::9", "world": world.INTERNET_V6, "everyone": "ff02::1"}[destination]
    payload = struct.pack("!4H", 4000, 9999, 8, 0)
    packet = struct.pack("!IHBB", 6 << 28, len(payload), 17, 64)
    packet += socket.inet_pton(socket.AF_INET6, "fe80::2") + socket.inet_pton(socket.AF_INET6, target) + payload
    mark = lab.recorder.mark()
    send(
        guest,
        ethernet(guest, packet, kind=0x86DD, destination="33:33:00:00:00:01" if destination == "everyone" else ""),
        times=4,
    )
    with inside(guest.identity.namespace):
        assert Path("/proc/sys/net/ipv6/conf", guest.identity.tap, "disable_ipv6").read_text().strip() == "1"
    assert lab.recorder.packets(mark) == []


def _try_ipv6(guest: NamespaceGuest) -> str:
    """A listener in the namespace over IPv6, with the tap's IPv6 switched on as root might."""
    there = guest.identity.namespace
    with inside(there):
        Path("/proc/sys/net/ipv6/conf", guest.identity.tap, "disable_ipv6").write_text("0")
        listener = socket.create_server(("::", 2222), family=socket.AF_INET6)
    with listener:
        ip(f"addr add fd00:1::1/64 dev {guest.identity.tap} nodad", there)
        ip(f"addr add fd00:1::2/64 dev {INTERFACE} nodad", guest.namespace)
        return str(guest.probe("tcp", address="fd00:1::1", port=2222, limit=2)["outcome"])


def test_the_rules_hold_ipv6_also_where_somebody_switched_it_on(lab: Lab, guest: NamespaceGuest) -> None:
    assert _try_ipv6(guest) == "timeout"
    assert guest.ledger(kind="drop", rule="not_ipv4")
    assert f"{guest.identity.tap}.disable_ipv6 was changed" in guest.tap.verify()


def test_without_the_rule_and_the_switch_ipv6_reaches_a_listener(lab: Lab) -> None:
    sabotage = (
        replace(
            "ruleset.nft",
            "        meta nfproto != ipv4 counter name not_ipv4 drop\n        ether",
            "        meta nfproto != ipv4 accept\n        ether",
        ),
        replace(
            "ruleset.nft",
            "        meta l4proto tcp redirect to :916",
            "        meta nfproto ipv4 meta l4proto tcp redirect to :916",
        ),
    )
    with NamespaceGuest(lab.home, [], sabotage=sabotage) as guest:
        assert _try_ipv6(guest) == "connected"
