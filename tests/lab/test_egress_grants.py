"""Grants on a running guard: what one opens, how it ends, what it never reaches, and what a restarted guard makes of
it."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.grant import MAX_GRANTS, MAX_SECONDS
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.instance.resources.firewall import Firewall
from ktrdr_vm.instance.resources.guard import Guard, find_guards
from ktrdr_vm.profile.egress_rule import EgressRule

ALLOWED = [{"host": "allowed.test.lab", "ports": [80, 443]}, {"host": "git.test.lab", "ports": [22]}]
# Promised is a second; a busy machine may take longer to tell.
SOON = 4.0


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def name_rule(host: str, *ports: int, reason: str = "") -> EgressRule:
    return EgressRule(host=host, ports=ports, reason=reason)


def range_rule(cidr: str, *ports: int) -> EgressRule:
    return EgressRule(cidr=IPv4Network(cidr), ports=ports)


class Flow:
    """A connection from the guest that sends without end, over TLS when a name is given, and knows when it was cut."""

    def __init__(self, guest: NamespaceGuest, address: str, port: int, name: str = "") -> None:
        with inside(guest.namespace):
            connection = socket.create_connection((address, port), 2)
        connection.settimeout(10)
        if name and port == 80:
            connection.sendall(f"PUT / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 1000000000\r\n\r\n".encode())
        elif name:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname=name)
            connection.sendall(f"PUT / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 1000000000\r\n\r\n".encode())
        self.connection = connection
        self.ended = 0.0
        self.sent = 0
        threading.Thread(target=self._send, daemon=True).start()
        if port != 443 or not name:
            threading.Thread(target=self._read, args=(port == 80,), daemon=True).start()
        while self.sent < 100_000:
            if self.ended:
                raise ConnectionResetError("cut before it was under way")
            time.sleep(0.01)

    def _send(self) -> None:
        try:
            while True:
                self.connection.sendall(b"x" * 1000)
                self.sent += 1000
                time.sleep(0.005)
        except OSError:
            self.ended = self.ended or time.monotonic()

    def _read(self, refused: bool) -> None:
        """What is repeated is taken, or the other side would stop; of an upload, any answer is its end."""
        try:
            while self.connection.recv(65536) and not refused:
                pass
        except OSError:
            pass
        self.ended = self.ended or time.monotonic()

    @property
    def alive(self) -> bool:
        if self.ended:
            return False
        before = self.sent
        time.sleep(0.3)
        return self.sent > before and not self.ended


FLOWS = {
    "tls by name": (name_rule("other.test.lab", 443), world.OTHER, 443, "other.test.lab"),
    "tls below a suffix": (name_rule("*.wild.test.lab", 443), world.WILD, 443, "one.wild.test.lab"),
    "http by name": (name_rule("other.test.lab", 80), world.OTHER, 80, "other.test.lab"),
    "a name on another port": (name_rule("other.test.lab", 9100), world.OTHER, 9100, ""),
    "a range": (range_rule(f"{world.DATABASE}/32", 5432), world.DATABASE, 5432, ""),
    "a range on 443": (range_rule("203.0.113.0/24", 443), world.EVIL, 443, "evil.test.lab"),
}


class Case:
    """One grant, and an upload under it."""

    def __init__(self, guest: NamespaceGuest, number: int, what: str) -> None:
        self.guest, self.id, self.what = guest, f"g-{number}", what
        self.rule, self.address, self.port, self.name = FLOWS[what]
        self.flow: Flow | None = None

    def try_flow(self) -> bool:
        try:
            self.flow = Flow(self.guest, self.address, self.port, self.name)
        except OSError:
            return False
        return True

    @property
    def kind(self) -> str:
        return "tcp" if not self.name or self.rule.cidr else {443: "tls", 80: "http"}[self.port]


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_grants_open_and_their_end_cuts_what_is_under_way(guest: NamespaceGuest, how: str) -> None:
    """Row 16, for each way out. An upload that the profile itself allows goes on all the while: what is cut is the
    grant's alone.

    Without `Granting._cut` the flows by name go on, without the table's judgement of every packet (`ended`) those by
    address do.
    """
    assert guest.lookup("git.test.lab")["answers"] == 1
    own = [Flow(guest, world.WEB, 443, "allowed.test.lab"), Flow(guest, world.GIT, 22)]
    cases = [Case(guest, number, what) for number, what in enumerate(FLOWS)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(Case.try_flow, cases)) == [False] * len(cases)
    seconds = 10.0 if how == "expired" else 600.0
    began = time.monotonic()
    for case in cases:
        made = GuardClient(guest.paths.guard).grant(case.id, case.rule, seconds)
        assert 0 < made.seconds <= seconds
    for case in cases:
        wait_until(case.try_flow, f"the grant opens {case.what}")
    flows = {case.what: case.flow for case in cases if case.flow}
    assert {what: flow.alive for what, flow in flows.items()} == dict.fromkeys(FLOWS, True)
    cut: dict[str, float] = {}
    if how == "revoked":
        for case, flow in zip(cases, flows.values(), strict=True):
            began, seconds = time.monotonic(), 0.0
            assert GuardClient(guest.paths.guard).revoke(case.id)
            wait_until(lambda flow=flow: flow.ended, f"{case.what} is cut", SOON)  # type: ignore[misc]
            cut[case.what] = flow.ended - began
    else:
        wait_until(lambda: all(flow.ended for flow in flows.values()), "all flows are cut", seconds + SOON)
        for what, flow in flows.items():
            assert flow.ended - began >= seconds - 0.1
            cut[what] = flow.ended - began - seconds
    print(f"seconds after the end of a grant, {how}: {cut}")
    assert statistics.median(cut.values()) < 1
    assert GuardClient(guest.paths.guard).list_grants() == ()
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(Case.try_flow, cases)) == [False] * len(cases)
    assert [one.alive for one in own] == [True, True]
    for case in cases:
        rule = f"grant:{case.id}"
        assert [row["message"] for row in guest.ledger(kind="grant", rule=rule)] == ["granted", how]
        wanted = {"kind": case.kind, "verdict": "allow", "rule": rule, "port": case.port}
        wait_until(lambda wanted=wanted: guest.read_ledger(**wanted), f"a line names the grant of {case.what}")  # type: ignore[misc]
        assert guest.read_ledger(**wanted)[0]["bytes_out"] >= 100_000
        if case.rule.host and not case.rule.host.startswith("*."):
            assert guest.read_ledger(kind="dns", verdict="allow", name=case.rule.host)


def tls_answer(guest: NamespaceGuest, name: str, address: str = world.EVIL) -> str:
    return str(guest.probe("tls", address=address, port=443, name=name).get("said", ""))


def test_a_granted_name_is_dialled_at_its_own_address_and_only_while_it_is_granted(
    lab: Lab, guest: NamespaceGuest
) -> None:
    mark = lab.recorder.mark()
    assert guest.lookup("other.test.lab")["rcode"] == 3
    GuardClient(guest.paths.guard).grant("one", name_rule("other.test.lab", 443, reason="to see"), 600)
    assert [(one.id, one.rule.host, one.rule.reason) for one in GuardClient(guest.paths.guard).list_grants()] == [
        ("one", "other.test.lab", "to see")
    ]
    assert [row["message"] for row in guest.ledger(kind="grant", name="other.test.lab")] == ["granted: to see"]
    assert guest.lookup("other.test.lab")["addresses"] == [world.OTHER]
    assert f"served by {world.OTHER}:443" in tls_answer(guest, "other.test.lab")
    request = "GET / HTTP/1.0\r\nHost: other.test.lab\r\n\r\n"
    refused = guest.probe("http", address=world.OTHER, port=80, send=request)
    assert refused["status"] == 403
    assert "ask with: ktrdr-escalate network other.test.lab 80" in refused["said"]
    assert guest.probe("tls", address=world.OTHER, port=443, name="evil.test.lab")["outcome"] == "reset"
    # Twice for one name: the end of one is not the end of the other.
    GuardClient(guest.paths.guard).grant("two", name_rule("other.test.lab", 443), 300)
    assert GuardClient(guest.paths.guard).revoke("one")
    assert not GuardClient(guest.paths.guard).revoke("one")
    assert f"served by {world.OTHER}:443" in tls_answer(guest, "other.test.lab")
    assert GuardClient(guest.paths.guard).revoke("two")
    assert tls_answer(guest, "other.test.lab") == ""
    wait_until(lambda: guest.lookup("other.test.lab")["rcode"] == 3, "the resolver knows")
    assert world.EVIL not in {packet.address for packet in lab.recorder.packets(mark)}


def test_a_restarted_guard_takes_up_what_has_not_ended(guest: NamespaceGuest) -> None:
    GuardClient(guest.paths.guard).grant("long", name_rule("other.test.lab", 443, 9100), 600)
    GuardClient(guest.paths.guard).grant("range", range_rule(f"{world.DATABASE}/32", 5432), 600)
    GuardClient(guest.paths.guard).grant("gone", name_rule("evil.test.lab", 443), 600)
    GuardClient(guest.paths.guard).revoke("gone")
    GuardClient(guest.paths.guard).grant("short", name_rule("one.wild.test.lab", 443), 1.0)
    os.kill(GuardClient(guest.paths.guard).status()["pid"], signal.SIGKILL)
    wait_until(lambda: find_guards(guest.paths.guard) == [], "its children end with it")
    time.sleep(1.0)
    guest.guard.create()
    assert guest.guard.verify() == []
    assert {one.id for one in GuardClient(guest.paths.guard).list_grants()} == {"long", "range"}
    said = [row["message"] for row in guest.ledger(kind="grant", rule="grant:short")]
    assert said == ["granted", "expired"], "also of one that ended while no guard ran"
    assert f"served by {world.OTHER}:443" in tls_answer(guest, "other.test.lab")
    wait_until(
        lambda: guest.probe("tcp", address=world.OTHER, port=9100)["outcome"] == "connected",
        "the resolver opened it by itself",
    )
    assert guest.probe("tcp", address=world.DATABASE, port=5432)["outcome"] == "connected"
    assert tls_answer(guest, "evil.test.lab") == tls_answer(guest, "one.wild.test.lab") == ""
    # A killed proxy knows the grants as well.
    os.kill(GuardClient(guest.paths.guard).status()["proxy"], signal.SIGKILL)
    wait_until(
        lambda: f"served by {world.OTHER}:443" in tls_answer(guest, "other.test.lab"),
        "the proxy is back, with the grant",
    )


def test_a_changed_profile_ends_the_flows_of_what_it_no_longer_allows_and_keeps_grants(
    lab: Lab, guest: NamespaceGuest
) -> None:
    """Row 21: the guard is stopped, the table replaced in one transaction, a new guard started; grants are the owner's
    and stay."""
    GuardClient(guest.paths.guard).grant("kept", name_rule("other.test.lab", 443), 600)
    assert guest.lookup("git.test.lab")["answers"] == 1
    flows = [Flow(guest, world.WEB, 443, "allowed.test.lab"), Flow(guest, world.GIT, 22)]
    with NamespaceGuest(lab.home, [{"host": "one.wild.test.lab", "ports": [443]}]) as other:
        # The other's plan with this one's identity and addresses: what a second `apply` has.
        changed = other.plan.__class__(other.plan.profile, guest.plan.facts, guest.identity, other.plan.source)
        blueprint = dataclasses.replace(guest.guard.blueprint, plan=changed)
    mark = lab.recorder.mark()
    firewall, guard = Firewall(guest.guard.target, blueprint), Guard(guest.guard.target, blueprint)
    assert guard.verify()
    guard.stop()
    firewall.create()
    guard.create()
    assert firewall.verify() == guard.verify() == []
    wait_until(lambda: all(flow.ended for flow in flows), "flows of rules that are gone are cut")
    assert tls_answer(guest, "allowed.test.lab") == ""
    assert f"served by {world.WILD}:443" in tls_answer(guest, "one.wild.test.lab")
    assert f"served by {world.OTHER}:443" in tls_answer(guest, "other.test.lab")
    assert guest.probe("tcp", address=world.GIT, port=22, limit=1.0)["outcome"] == "timeout"
    allowed = {("tcp", world.WILD, 443), ("tcp", world.OTHER, 443), ("udp", world.DNS, 53)}
    finishing = {("tcp", world.WEB, 443), ("tcp", world.GIT, 22)}
    assert lab.recorder.endpoints(mark) - allowed - finishing == set()


def test_a_grant_by_address_ends_by_itself_when_the_guard_hangs(guest: NamespaceGuest) -> None:
    """Fail closed: the table's own clock ends it, also for a flow on 443, whose packets the by-name listener may still
    get."""
    GuardClient(guest.paths.guard).grant("a", range_rule(f"{world.DATABASE}/32", 5432), 3)
    GuardClient(guest.paths.guard).grant("b", range_rule("203.0.113.0/24", 443), 3)
    flows = [Flow(guest, world.DATABASE, 5432), Flow(guest, world.EVIL, 443, "evil.test.lab")]
    guard = GuardClient(guest.paths.guard).status()["pid"]
    os.kill(guard, signal.SIGSTOP)
    try:
        wait_until(lambda: all(flow.ended for flow in flows), "the flows end")
    finally:
        os.kill(guard, signal.SIGCONT)


REFUSED = {
    "a printer": range_rule(f"{world.PRINTER}/32", 9100),
    "metadata": range_rule(f"{world.METADATA}/32", 80),
    "a range around the LAN": range_rule("192.0.0.0/8", 443),
    "another port": range_rule("192.168.77.20/32", 23, 22),
}


def test_no_grant_reaches_what_is_reserved(lab: Lab) -> None:
    with NamespaceGuest(lab.home, ALLOWED, reserved=(("192.168.77.20", 22), (world.PRINTER, 443))) as guest:
        mark = lab.recorder.mark()
        for what, rule in REFUSED.items():
            with pytest.raises(ProvisionError, match="reserved"):
                GuardClient(guest.paths.guard).grant(what.replace(" ", "-"), rule, 60)
        # A name is granted for what it is; where it points to is judged when it is looked up.
        GuardClient(guest.paths.guard).grant("metadata", name_rule("metadata.test.lab", 80), 60)
        GuardClient(guest.paths.guard).grant("half", name_rule("printer.test.lab", 443, 9100), 60)
        request = "GET / HTTP/1.0\r\nHost: metadata.test.lab\r\n\r\n"
        assert guest.probe("http", address=world.WEB, port=80, send=request)["status"] == 403
        assert guest.lookup("printer.test.lab")["answers"] == 0
        assert guest.probe("tcp", address=world.PRINTER, port=9100, limit=1.0)["outcome"] == "timeout"
        assert [packet for packet in lab.recorder.packets(mark) if packet.network == "lan"] == []
        # The owner's own word is another matter.
        GuardClient(guest.paths.guard).revoke("half")
        GuardClient(guest.paths.guard).grant("owners", name_rule("printer.test.lab", 443), 60)
        assert "served by" in tls_answer(guest, "printer.test.lab")
        GuardClient(guest.paths.guard).grant("owners-range", range_rule("192.168.77.20/32", 22), 60)
        assert guest.probe("tcp", address="192.168.77.20", port=22)["said"] == "echo 192.168.77.20:22\n"
        GuardClient(guest.paths.guard).revoke("owners")
        GuardClient(guest.paths.guard).revoke("owners-range")
        assert tls_answer(guest, "printer.test.lab") == ""
        assert guest.probe("tcp", address="192.168.77.20", port=22, limit=1.0)["outcome"] == "timeout"


def test_a_grant_is_bounded(guest: NamespaceGuest) -> None:
    rule = name_rule("other.test.lab", 443)
    for seconds in (0, -1, float("inf"), float("nan"), MAX_SECONDS + 1):
        with pytest.raises(ProvisionError, match="seconds"):
            GuardClient(guest.paths.guard).grant("x", rule, seconds)
    for number in range(MAX_GRANTS):
        GuardClient(guest.paths.guard).grant(f"x{number}", name_rule(f"n{number}.test.lab", 443), 600)
    with pytest.raises(ProvisionError, match="revoke one first"):
        GuardClient(guest.paths.guard).grant("x", rule, 600)
    with pytest.raises(ProvisionError, match="another rule"):
        GuardClient(guest.paths.guard).grant("x0", rule, 600)
    assert 0 < GuardClient(guest.paths.guard).grant("x0", name_rule("n0.test.lab", 443), 5).seconds <= 5
    assert len(GuardClient(guest.paths.guard).list_grants()) == MAX_GRANTS
    assert guest.guard.verify() == []
