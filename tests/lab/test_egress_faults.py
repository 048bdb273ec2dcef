"""Rows 17 to 19: a guest that floods, another program that touches nftables, and parts of the guard that are killed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside, ip
from laboratory.netguest import INTERFACE, NamespaceGuest, replace
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.host import process
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.instance.guard_status import check_guard
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.plan.guard_interface import GUEST_MAC, MAX_FLOWS
from ktrdr_vm.plan.haproxy import MAX_CONNECTIONS

ALLOWED = [{"host": "allowed.test.lab", "ports": [80, 443]}, {"host": "git.test.lab", "ports": [22]}]


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def works(guest: NamespaceGuest) -> bool:
    answer = guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab")
    return "served by" in answer.get("said", "")


def notes(guest: NamespaceGuest) -> list[str]:
    return [str(row["message"]) for row in guest.read_ledger(kind="guard", verdict="note")]


def status(guest: NamespaceGuest) -> dict[str, Any]:
    return GuardClient(guest.paths.guard).status()


def stop_guard(guest: NamespaceGuest) -> Callable[[], None]:
    """Stop the guard, so that what it would put back can be looked into. Returns what lets it go on."""
    pid = status(guest)["pid"]
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def probe_outside(guest: NamespaceGuest) -> list[str]:
    """What answers at places that nobody allowed."""
    places = [("tcp", world.EVIL, 22), ("udp", world.EVIL, 9999), ("tcp", world.PRINTER, 9100)]
    answers = guest.probe_all(
        [{"kind": kind, "address": address, "port": port, "limit": 1} for kind, address, port in places]
    )
    return [answer["outcome"] for answer in answers if answer["outcome"] in ("connected", "answered")]


OTHER_TABLE = """table inet other {
    chain c { type filter hook prerouting priority -400; accept; }
    chain f { type filter hook forward priority -400; accept; }
}"""


@pytest.mark.parametrize("change", ["flush ruleset", "delete table inet {table}", OTHER_TABLE, "forward", "redirect"])
def test_other_rules_on_the_host_do_not_touch_the_guest(lab: Lab, guest: NamespaceGuest, change: str) -> None:
    """Another network's business: no flow ends, nothing opens, and the ledger has no line of it."""
    from test_egress_grants import Flow

    assert guest.lookup("git.test.lab")["addresses"] == [world.GIT]
    flow, before = Flow(guest, world.GIT, 22), notes(guest)
    try:
        if change == "forward":
            Path("/proc/sys/net/ipv4/conf/all/forwarding").write_text("1")
        elif change == "redirect":
            words = "table inet other { chain c { type nat hook prerouting priority -110; tcp dport 1-65535 redirect to :2222; }; }"
            process.run(["nft", words], timeout=10)
        else:
            process.run(["nft", change.replace("{table}", guest.identity.table)], timeout=10)
        mark = lab.recorder.mark()
        assert probe_outside(guest) == []
        assert [packet for packet in lab.recorder.packets(mark) if packet.address != world.GIT] == []
        wait_until(lambda: guest.firewall.verify() == [], "the table on the host is there")
        assert works(guest) and flow.alive and notes(guest) == before
    finally:
        process.run(["nft", "add table inet other; delete table inet other"], timeout=10)


def test_a_denial_is_counted_once_whatever_happens_to_the_hosts_table(guest: NamespaceGuest) -> None:
    """The counters of the guest's table go on when the other one is loaded again."""
    guest.probe("udp", address=world.EVIL, port=9999, limit=0.5)

    def count() -> int:
        return sum(row["count"] for row in guest.ledger(kind="drop", port=9999))

    before = count()
    assert before > 0
    process.run(["nft", "flush", "ruleset"], timeout=10)
    wait_until(lambda: guest.firewall.verify() == [], "the table on the host is there")
    assert count() == before


@pytest.mark.parametrize("how", ["delete table inet {table}", "flush ruleset"])
def test_rules_removed_in_the_namespace_come_back_and_nothing_was_forwarded_meanwhile(
    lab: Lab, guest: NamespaceGuest, how: str
) -> None:
    assert works(guest)
    go_on = stop_guard(guest)
    try:
        guest.nft(how.format(table=guest.identity.table))
        let_forward(guest)
        mark = lab.recorder.mark()
        assert probe_outside(guest) == []
        assert lab.recorder.packets(mark) == []
    finally:
        go_on()
    wait_until(guest.firewall.exists, "the guard restores the table")
    wait_until(lambda: any("they are back" in note for note in notes(guest)), "the ledger says so")
    assert guest.firewall.verify() == []
    assert works(guest)
    assert guest.probe("tcp", address=world.EVIL, port=22, limit=1)["outcome"] == "timeout"


def let_forward(guest: NamespaceGuest) -> None:
    with inside(guest.identity.namespace):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv4/conf", guest.identity.tap, "forwarding").write_text("1")


def test_with_an_uplink_in_the_namespace_the_same_packets_are_forwarded(lab: Lab, guest: NamespaceGuest) -> None:
    """The control of the test above. What is not there is what holds, and `verify` names it when it is."""
    there = guest.identity.namespace
    go_on = stop_guard(guest)
    try:
        ip(f"link add up0 type veth peer name out0 netns {there}")
        ip("addr add 10.99.0.1/24 dev up0")
        ip("link set up0 up")
        ip("addr add 10.99.0.2/24 dev out0", there)
        ip("link set out0 up", there)
        ip("route add default via 10.99.0.1", there)
        ip("route add 10.213.0.0/30 via 10.99.0.2")
        guest.nft("flush ruleset")
        let_forward(guest)
        mark = lab.recorder.mark()
        guest.probe("udp", address=world.EVIL, port=9999, limit=2)
        assert ("udp", world.EVIL, 9999) in lab.recorder.endpoints(mark)
        assert guest.host_namespace.verify() == ["it forwards", "it has other interfaces: out0"]
    finally:
        ip("link del up0")
        go_on()


def test_changed_rules_are_noticed_by_status_and_undone_by_the_guard(guest: NamespaceGuest) -> None:
    go_on = stop_guard(guest)
    try:
        guest.nft(f"insert rule inet {guest.identity.table} guest_in accept")
        assert guest.firewall.verify() == ["the table's rules were changed"]
    finally:
        go_on()
    wait_until(lambda: guest.firewall.verify() == [], "the guard puts the rules back")
    wait_until(lambda: any("they are back" in note for note in notes(guest)), "the ledger says so")


@pytest.mark.parametrize("part", ["resolver", "proxy"])
def test_a_killed_part_is_started_again_and_noted(guest: NamespaceGuest, part: str) -> None:
    before = status(guest)[part]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: status(guest)[part] not in (0, before), f"the {part} is started again")
    wait_until(lambda: works(guest), "names are answered and carried again")
    assert any(f"the {part} ended" in note for note in notes(guest))
    assert guest.guard.verify() == []


def test_a_part_that_ends_again_and_again_is_never_given_up(lab: Lab, guest: NamespaceGuest) -> None:
    """Of more ends than twenty in a minute the guard made an end of its own, and nothing served any more until the next
    `apply`."""
    guard, killed = status(guest)["pid"], set()
    end = time.monotonic() + 8
    while time.monotonic() < end:
        resolver = status(guest)["resolver"]
        if resolver and resolver not in killed:
            killed.add(resolver)
            with suppress(ProcessLookupError):
                os.kill(resolver, signal.SIGKILL)
        time.sleep(0.002)
    part = status(guest)["parts"]["the resolver"]
    # More and more slowly: without a pause it is hundreds.
    assert 4 <= part["ends"] == len(killed) < 12 and not part["serves"]
    assert part["said"] == "it ended with signal 9"
    assert check_guard(guest.paths.guard) == ["the resolver does not serve: it ended with signal 9"]
    assert any("the resolver ended and is started again in" in note for note in notes(guest))
    # What made it end is over: it serves again without anybody's help, in the guard that was there.
    wait_until(lambda: check_guard(guest.paths.guard) == [], "it serves again", 40)
    assert works(guest) and status(guest)["pid"] == guard


def test_a_killed_guard_leaves_everything_closed(lab: Lab, guest: NamespaceGuest) -> None:
    assert guest.lookup("git.test.lab")["addresses"] == [world.GIT]
    assert works(guest)
    os.kill(status(guest)["pid"], signal.SIGKILL)
    wait_until(lambda: find_guards(guest.paths.guard) == [], "its children end with it")
    mark = lab.recorder.mark()
    answers = guest.probe_all(
        [
            {"kind": "dns", "address": guest.gateway, "name": "allowed.test.lab"},
            {"kind": "tls", "address": world.WEB, "port": 443, "name": "allowed.test.lab"},
            {
                "kind": "http",
                "address": world.WEB,
                "port": 80,
                "send": "GET / HTTP/1.0\r\nHost: allowed.test.lab\r\n\r\n",
            },
            {"kind": "tcp", "address": world.GIT, "port": 22},
            {"kind": "tcp", "address": world.EVIL, "port": 22},
        ]
    )
    assert {answer["outcome"] for answer in answers} <= {"timeout", "refused"}
    assert lab.recorder.packets(mark) == []
    assert guest.guard.verify() == ["the guard does not run; nothing leaves the instance"]
    guest.guard.create()
    assert guest.guard.verify() == []
    assert works(guest)


def test_a_flood_is_bounded_and_the_sibling_is_served(lab: Lab, guest: NamespaceGuest) -> None:
    """Row 17: questions and connections, as fast as they go, while another instance asks for one name."""
    flood = [
        {"kind": "dns", "address": guest.gateway, "name": f"x{number}.evil.test.lab", "limit": 0.2}
        for number in range(1500)
    ]
    flood += [{"kind": "tcp", "address": world.EVIL, "port": 1000 + number, "limit": 0.2} for number in range(300)]
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        began = time.monotonic()
        guest.probe_all(flood, at_once=64)
        assert sibling.lookup("allowed.test.lab")["addresses"] == [world.WEB]
        assert works(sibling)
        assert time.monotonic() - began < 60
    lines = guest.ledger()
    assert len(lines) < 200 * (time.monotonic() - began + 2)
    assert guest.paths.ledger.stat().st_size < 2_000_000
    assert guest.guard.verify() == []
    wait_until(lambda: works(guest), "the guest itself is served again")


def test_connections_that_nobody_answers_are_bounded_and_none_is_in_the_hosts_table(lab: Lab) -> None:
    """Row 17: the kernel keeps account of connections in memory of the host. Without the bound every SYN has a place
    there."""
    bound = f" ct state new ct count over {MAX_FLOWS} counter name crowded drop\n"
    for sabotage, most in (
        ((), MAX_FLOWS + 500),
        ((replace("ruleset.nft", bound, " meta l4proto tcp accept\n"),), 9000),
    ):
        with (
            NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest,
            NamespaceGuest(lab.home, ALLOWED) as sibling,
        ):
            before, outside = guest.count_flows(), count_flows()
            send_half(guest, 10_000)
            made = guest.count_flows() - before
            assert (made <= most) if not sabotage else (made >= most), made
            assert count_flows() - outside < 2 * MAX_CONNECTIONS and works(sibling)
            if not sabotage:
                assert sum(row["count"] for row in guest.ledger(kind="drop", rule="crowded")) > 5000


def count_flows() -> int:
    """The entries of the host's own table, which has what the proxy dials."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def send_half(guest: NamespaceGuest, count: int) -> None:
    """So many first packets of connections, to addresses that the proxy answers for; its answers are not heard."""
    link = bytes.fromhex((guest.host_mac + GUEST_MAC).replace(":", "")) + b"\x08\x00"
    source = socket.inet_aton(guest.address)
    with inside(guest.namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        deaf = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; policy drop; }"
        process.run(["nft", deaf], timeout=10)
        wire.bind((INTERFACE, 0))
        for number in range(count):
            target = struct.pack(">I", 0x0B000000 + number)
            head = struct.pack(">HHIIBBHHH", 1024 + number, 443, 1, 0, 0x50, 2, 65535, 0, 0)
            head = head[:16] + checksum(source + target + struct.pack(">HH", 6, len(head)) + head) + head[18:]
            packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, source, target)
            packet = packet[:10] + checksum(packet) + packet[12:]
            wire.send(link + packet + head)
            if number % 500 == 0:
                time.sleep(0.02)


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF)


def test_siblings_do_not_reach_each_other(lab: Lab, guest: NamespaceGuest) -> None:
    """They have the same addresses, each in a namespace of its own: what a guest sends there is for itself or its own
    guard."""
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        assert (sibling.address, sibling.gateway) == (guest.address, guest.gateway)
        with inside(sibling.namespace):
            listener = socket.create_server(("0.0.0.0", 8022))
        with listener:
            for address in (sibling.address, sibling.gateway):
                assert guest.probe("tcp", address=address, port=8022, limit=0.5)["outcome"] in ("timeout", "refused")
            listener.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listener.accept()
        assert works(sibling)


def test_a_denial_is_counted_once_also_when_the_guard_is_started_again(guest: NamespaceGuest) -> None:
    """The counters of the table outlive the guard."""
    guest.probe("udp", address=world.EVIL, port=9999, limit=0.5)

    def count() -> int:
        return sum(row["count"] for row in guest.ledger(kind="drop", port=9999))

    before = count()
    assert before > 0
    os.kill(status(guest)["pid"], signal.SIGKILL)
    lock = guest.paths.guard / "guard.lock"
    wait_until(lambda: not find_guards(guest.paths.guard) and not is_locked(lock), "its children end with it")
    guest.guard.create()
    assert count() == before
    guest.probe("udp", address=world.EVIL, port=9999, limit=0.5)
    assert count() > before
