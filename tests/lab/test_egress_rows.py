"""Rows of the attack list that need more than one probe: cleartext HTTP/2, the first instant, a flood beside a sibling,
a missing part."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import MS_BIND, inside, mount
from laboratory.netguest import INTERFACE, NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.plan.guard_interface import GUEST_MAC

ALLOWED = [{"host": "allowed.test.lab", "ports": [80, 443]}, {"host": "git.test.lab", "ports": [22]}]


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def http(guest: NamespaceGuest, text: str) -> tuple[int, str]:
    answer = guest.probe("http", address=world.WEB, port=80, send=text)
    return int(answer["status"]), str(answer["said"])


def test_row_5_what_http_may_look_like_is_decided_on_purpose(lab: Lab, guest: NamespaceGuest) -> None:
    mark = lab.recorder.mark()
    head = "Host: allowed.test.lab\r\n"
    texts = (
        f"GET / HTTP/1.1\r\n{head}Host: evil.test.lab\r\n\r\n",
        f"GET http://allowed.test.lab/ HTTP/1.1\r\n{head}\r\n",
        f"GET http://evil.test.lab/ HTTP/1.1\r\n{head}\r\n",
        f"CONNECT allowed.test.lab:443 HTTP/1.1\r\n{head}\r\n",
        f"GET / HTTP/1.1\r\n{head}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        f"GET / HTTP/1.1\r\n{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: allowed.test.lab@evil.test.lab\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: evil.test.lab\r\n Host: allowed.test.lab\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    )
    answers = guest.probe_all(
        [{"kind": "http", "address": world.WEB, "port": 80, "send": text, "patience": 3} for text in texts]
    )
    assert [
        (text, answer) for text, answer in zip(texts, answers, strict=True) if answer.get("status") not in (400, 403)
    ] == []
    assert [hit for hit in lab.recorder.hits(mark) if hit.server in ("http", "https", "tcp")] == []
    # Of equal ones exactly one is forwarded: the server cannot be told two things.
    assert http(guest, f"GET / HTTP/1.1\r\n{head}{head}Connection: close\r\n\r\n") == (
        200,
        http(guest, f"GET / HTTP/1.0\r\n{head}\r\n")[1],
    )
    assert {hit.name for hit in lab.recorder.hits(mark, "http")} == {"allowed.test.lab"}


def test_row_5_every_request_of_a_kept_connection_is_judged(lab: Lab, guest: NamespaceGuest) -> None:
    mark = lab.recorder.mark()
    good, bad = "GET / HTTP/1.1\r\nHost: allowed.test.lab\r\n\r\n", "GET / HTTP/1.1\r\nHost: evil.test.lab\r\n\r\n"
    said = http(guest, good + bad + good.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))[1]
    assert said.count("HTTP/1.1 200") >= 1 and "evil.test.lab:80 is not in the egress allowlist" in said
    assert "ask with: ktrdr-escalate network evil.test.lab 80" in said
    assert {hit.name for hit in lab.recorder.hits(mark, "http")} == {"allowed.test.lab"}


@pytest.mark.parametrize("name", ["evil.test.lab", None])
def test_row_3_a_refusal_of_tls_is_a_reset_and_fast(guest: NamespaceGuest, name: str | None) -> None:
    """Not a connection that closes in good order, which looks like a server's mistake."""
    assert guest.probe("tls", address=world.WEB, port=443, name=name)["outcome"] == "reset"


class EarlyGuest(NamespaceGuest):
    """A guest that sends from before its interface is there: to a foreign address, to the LAN, as somebody else, and by
    name."""

    stop = False
    sent = 0

    def _make_link(self) -> None:
        super()._make_link()
        with inside(self.namespace):
            plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind((INTERFACE, 0))
        frame = bytes.fromhex("ff" * 6 + GUEST_MAC.replace(":", "") + "0800") + bytes.fromhex(
            "45000020000100004011000000000000"
        )

        def flood() -> None:
            while not self.stop:
                for address, port in (
                    (world.EVIL, 53),
                    (world.EVIL, 9999),
                    (world.PRINTER, 9),
                    (world.METADATA, 80),
                    (world.DNS, 53),
                ):
                    try:
                        plain.sendto(b"x" * 32, (address, port))
                        raw.send(frame + socket.inet_aton(address) + b"\x9c\x40\x00\x35\x00\x0c\x00\x00abcd")
                        self.sent += 1
                    except OSError:
                        time.sleep(0.0002)

        for _ in range(2):
            threading.Thread(target=flood, daemon=True).start()


def test_row_15_nothing_passes_from_the_first_instant(lab: Lab) -> None:
    """A sniffer on the networks outside, from before the guest's interface is there."""
    mark = lab.recorder.mark()
    early = EarlyGuest(lab.home, ALLOWED)
    with early as guest:
        wait_until(lambda: early.sent > 500, "the guest sends")
        assert "served by" in guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab")["said"]
        early.stop = True
        drops = guest.ledger(kind="drop")
    assert lab.recorder.endpoints(mark) <= {("udp", world.DNS, 53), ("tcp", world.WEB, 443)}
    own = [packet for packet in lab.recorder.packets(mark) if packet.source.startswith("10.213.")]
    assert own == [], "what leaves is dialled by the host"
    assert {row["address"] for row in drops} >= {world.EVIL, world.PRINTER, world.METADATA}


def test_each_request_of_a_connection_goes_where_its_own_name_says(lab: Lab) -> None:
    """Row 5: the second request of a connection is judged and sent like a first one, wherever the guest meant the
    connection to go."""
    with NamespaceGuest(
        lab.home, [{"host": name, "ports": [80]} for name in ("allowed.test.lab", "other.test.lab")]
    ) as guest:
        # The proxy knows both answers, so that it need not ask for them.
        assert all(guest.lookup(name)["addresses"] for name in ("allowed.test.lab", "other.test.lab"))
        names = ("allowed.test.lab", "other.test.lab", "allowed.test.lab", "evil.test.lab")
        requests = "".join(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n" for name in names)
        for address in (world.WEB, world.OTHER, world.EVIL):
            mark = lab.recorder.mark()
            said = guest.probe("http", address=address, port=80, send=requests, patience=2)["said"]
            assert re.findall(r"HTTP/1.1 (\d+)", said) == ["200", "200", "200", "403"]
            assert re.findall(r"served by (\S+):80", said) == [world.WEB, world.OTHER, world.WEB]
            assert {one for one in lab.recorder.endpoints(mark) if one[0] == "tcp"} == {
                ("tcp", world.WEB, 80),
                ("tcp", world.OTHER, 80),
            }


def test_row_17_a_flood_of_everything_is_bounded_and_counted_and_the_sibling_is_served(
    lab: Lab, guest: NamespaceGuest
) -> None:
    """SYN to closed and to by-name ports, half-open connections that say nothing, questions over UDP and TCP."""
    stop = threading.Event()
    sent = [0]

    def flood(number: int) -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            with inside(guest.namespace):
                try:
                    if number % 2:
                        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        for _ in range(200):
                            one.sendto(
                                os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0\4evil\4test\3lab\0\0\1\0\1", (guest.gateway, 53)
                            )
                            sent[0] += 1
                        one.close()
                    else:
                        for address, port in ((world.WEB, 443), (world.WEB, 80), (world.EVIL, 22), (guest.gateway, 53)):
                            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                            one.setblocking(False)
                            one.connect_ex((address, port))
                            held.append(one)
                except OSError:
                    time.sleep(0.01)
            if len(held) > 800:
                for one in held[:400]:
                    one.close()
                del held[:400]
        for one in held:
            one.close()

    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        threads = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        for _ in range(5):
            assert sibling.lookup("allowed.test.lab")["addresses"] == [world.WEB]
            assert (
                "served by"
                in sibling.probe("tls", address=world.WEB, port=443, name="allowed.test.lab", limit=8)["said"]
            )
        stop.set()
        for thread in threads:
            thread.join()
        assert sibling.guard.verify() == []
    assert guest.guard.verify() == []
    wait_until(
        lambda: "served by" in guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab").get("said", ""),
        "it recovers",
        60,
    )
    assert guest.paths.ledger.stat().st_size < 4_000_000

    def counted() -> int:
        """Questions in the ledger: lines of their own, those that were beyond the guest's share, and those beyond the
        ledger's."""
        return sum(int(row.get("count", 1)) for row in guest.ledger(kind="dns", verdict="deny"))

    # What the kernel dropped before anybody saw it is not the guard's to count.
    before = counted()
    assert before > 300
    resolver_rss = _resident(guest)
    assert resolver_rss < 120_000, f"the resolver holds {resolver_rss} kB"


def _resident(guest: NamespaceGuest) -> int:
    from ktrdr_vm.egress.client import GuardClient

    status = Path(f"/proc/{GuardClient(guest.paths.guard).status()['resolver']}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


@contextmanager
def missing(program: str) -> Iterator[None]:
    """As on a host that lacks it: what is there cannot be started. In the lab's own mounts."""
    path = next(place for place in (f"/usr/sbin/{program}", f"/usr/bin/{program}") if Path(place).exists())
    mount("/dev/null", path, flags=MS_BIND)
    try:
        yield
    finally:
        import subprocess

        subprocess.run(["umount", path], check=True, timeout=10)


@pytest.mark.parametrize("program", ["nft", "haproxy"])
def test_row_22_without_a_part_there_is_no_guest_rather_than_a_lesser_one(lab: Lab, program: str) -> None:
    made = NamespaceGuest(lab.home, ALLOWED)
    mark = lab.recorder.mark()
    made.paths.directory.mkdir(mode=0o711)
    try:
        with missing(program), pytest.raises(KtrdrError):
            made.firewall.create()
            made.guard.create()
            wait_until(
                lambda: not is_locked(made.paths.guard / "guard.lock") or made.guard.verify(), "the guard is not there"
            )
            differences = made.guard.verify()
            assert differences
            raise KtrdrError("; ".join(differences), hint="-")
        assert lab.recorder.packets(mark) == []
    finally:
        made.__exit__()


def test_row_21_a_table_is_replaced_whole_under_fire(lab: Lab, guest: NamespaceGuest) -> None:
    """While the guest tries what is never allowed as fast as it can, its table is loaded anew many times: not one
    packet passes."""
    stop = threading.Event()

    def fire() -> None:
        while not stop.is_set():
            guest.probe("tcp", address=world.EVIL, port=22, limit=0.02)
            guest.probe("udp", address=world.EVIL, port=9999, limit=0.02)
            guest.probe("tcp", address=guest.gateway, port=world.HOST_SERVICE_PORT, limit=0.02)

    mark = lab.recorder.mark()
    threads = [threading.Thread(target=fire, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        guest.firewall.create()
    stop.set()
    for thread in threads:
        thread.join()
    assert lab.recorder.endpoints(mark) - {("udp", world.DNS, 53)} == set()
    assert lab.recorder.hits(mark, "host") == []
    assert guest.firewall.verify() == []


def test_a_connection_outlives_the_address_of_its_name_and_no_new_one_begins(guest: NamespaceGuest) -> None:
    """A name moves to another address during a transfer; the elements of the old one end, in the table as well."""
    from test_egress_grants import Flow

    assert guest.lookup("git.test.lab")["addresses"] == [world.GIT]
    flow = Flow(guest, world.GIT, 22)
    table = guest.identity.table
    element = f"{{ {world.GIT} . 22 }}"
    # As the guard does it when the element was not renewed, and then the element's end.
    guest.nft(f"add element inet {table} kept {{ {world.GIT} . 22 timeout 60s }}")
    guest.nft(f"delete element inet {table} names {element}")
    assert flow.alive
    assert guest.probe("tcp", address=world.GIT, port=22, limit=1.0)["outcome"] == "timeout"
    guest.nft(f"delete element inet {table} kept {element}")
    wait_until(lambda: flow.ended, "without either it ends")
