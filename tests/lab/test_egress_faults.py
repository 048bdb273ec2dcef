"""Rows 17 to 19: a guest that floods, another program that touches nftables, and parts of the guard that are killed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
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
from ktrdr_vm.instance.resources.guard import find_guards, look_at_guard
from ktrdr_vm.plan.guard_interface import MAX_FLOWS

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


def delete_table(guest: NamespaceGuest, how: str) -> None:
    process.run(["nft", *how.format(table=guest.identity.table).split()], timeout=10)


@pytest.mark.parametrize("how", ["delete table inet {table}", "flush ruleset"])
def test_a_removed_table_is_restored_and_nothing_was_forwarded_meanwhile(lab: Lab, guest: NamespaceGuest, how: str) -> None:
    assert works(guest)
    guard = status(guest)["pid"]
    os.kill(guard, signal.SIGSTOP)  # so that the time without rules is long enough to look into
    try:
        delete_table(guest, how)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv4/conf", guest.identity.tap, "forwarding").write_text("1")
        mark = lab.recorder.mark()
        answers = guest.probe_all(
            [
                {"kind": "tcp", "address": world.EVIL, "port": 22, "limit": 1},
                {"kind": "udp", "address": world.EVIL, "port": 9999, "limit": 1},
                {"kind": "tcp", "address": world.PRINTER, "port": 9100, "limit": 1},
            ]
        )
        assert [answer["outcome"] for answer in answers if answer["outcome"] in ("connected", "answered")] == []
        assert lab.recorder.packets(mark) == []
    finally:
        os.kill(guard, signal.SIGCONT)
    wait_until(guest.firewall.exists, "the guard restores the table")
    wait_until(lambda: any("the rules are back" in note for note in notes(guest)), "the ledger says so")
    assert guest.firewall.verify() == []
    assert works(guest)
    assert guest.probe("tcp", address=world.EVIL, port=22, limit=1)["outcome"] == "timeout"


def test_without_the_routing_rule_the_same_packets_are_forwarded(lab: Lab, guest: NamespaceGuest) -> None:
    """The control of the test above."""
    guard = status(guest)["pid"]
    os.kill(guard, signal.SIGSTOP)
    try:
        delete_table(guest, "delete table inet {table}")
        Path("/proc/sys/net/ipv4/conf", guest.identity.tap, "forwarding").write_text("1")
        ip(f"rule del iif {guest.identity.tap} priority 32000")
        assert guest.probe("udp", address=world.EVIL, port=9999, limit=2)["outcome"] == "answered"
    finally:
        os.kill(guard, signal.SIGCONT)


def test_changed_rules_are_noticed_by_status_and_undone_by_the_guard(guest: NamespaceGuest) -> None:
    guard = status(guest)["pid"]
    os.kill(guard, signal.SIGSTOP)
    try:
        process.run(["nft", "insert", "rule", "inet", guest.identity.table, "guest_in", "accept"], timeout=10)
        assert guest.firewall.verify() == ["the table's rules were changed"]
    finally:
        os.kill(guard, signal.SIGCONT)
    wait_until(lambda: guest.firewall.verify() == [], "the guard puts the rules back")
    wait_until(lambda: any("the rules are back" in note for note in notes(guest)), "the ledger says so")


def test_another_tools_accept_opens_nothing(lab: Lab, guest: NamespaceGuest) -> None:
    """Row 18: an accept in one table is no accept in the others."""
    text = "table inet other { chain c { type filter hook prerouting priority -400; accept; }\n chain f { type filter hook forward priority -400; accept; }\n }\n"
    process.run(["nft", "-f", "-"], stdin=text.encode(), timeout=10)
    try:
        mark = lab.recorder.mark()
        assert guest.probe("tcp", address=world.EVIL, port=22, limit=1)["outcome"] == "timeout"
        assert lab.recorder.packets(mark) == []
        assert works(guest)
    finally:
        process.run(["nft", "delete", "table", "inet", "other"], timeout=10)


@pytest.mark.parametrize("part", ["resolver", "proxy"])
def test_a_killed_part_is_started_again_and_noted(guest: NamespaceGuest, part: str) -> None:
    before = status(guest)[part]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: status(guest)[part] not in (0, before), f"the {part} is started again")
    wait_until(lambda: works(guest), "names are answered and carried again")
    assert any(f"the {part} ended" in note for note in notes(guest))
    assert guest.guard.verify() == []


def test_a_part_that_ends_again_and_again_is_never_given_up(lab: Lab, guest: NamespaceGuest) -> None:
    """Of more ends than twenty in a minute the guard made an end of its own, and nothing served any more until the next `apply`."""
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
    assert look_at_guard(guest.paths.guard) == ["the resolver does not serve: it ended with signal 9"]
    assert any("the resolver ended and is started again in" in note for note in notes(guest))
    # What made it end is over: it serves again without anybody's help, in the guard that was there.
    wait_until(lambda: look_at_guard(guest.paths.guard) == [], "it serves again", 40)
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
            {"kind": "http", "address": world.WEB, "port": 80, "send": "GET / HTTP/1.0\r\nHost: allowed.test.lab\r\n\r\n"},
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
    flood = [{"kind": "dns", "address": guest.gateway, "name": f"x{number}.evil.test.lab", "limit": 0.2} for number in range(1500)]
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


def test_connections_that_nobody_answers_do_not_fill_the_hosts_table(lab: Lab) -> None:
    """Row 17: the kernel keeps account of connections in one table of the whole host. Without the bound every SYN has a place in it."""
    bound = f" ct state new ct count over {MAX_FLOWS} counter name crowded drop\n"
    for sabotage, most in (((), MAX_FLOWS + 500), ((replace("ruleset.nft", bound, " meta l4proto tcp accept\n"),), 9000)):
        with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest, NamespaceGuest(lab.home, ALLOWED) as sibling:
            before = count_flows()
            send_half(guest, 10_000)
            made = count_flows() - before
            assert (made <= most) if not sabotage else (made >= most), made
            assert works(sibling)
            if not sabotage:
                assert sum(row["count"] for row in guest.ledger(kind="drop", rule="crowded")) > 5000


def count_flows() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def send_half(guest: NamespaceGuest, count: int) -> None:
    """So many first packets of connections, to addresses that the proxy answers for; its answers are not heard."""
    link = bytes.fromhex((guest.host_mac + guest.identity.mac).replace(":", "")) + b"\x08\x00"
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
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        for address in (sibling.address, sibling.gateway):
            for port in (22, 53, 443, 916):
                assert guest.probe("tcp", address=address, port=port, limit=0.5)["outcome"] == "timeout"
        assert works(sibling)
