"""The inbox over HTTP, with the guest's own tool: asked, answered, refused; garbage, floods and forged identities."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrdr_vm.escalation.inbox import PATH, run_inbox
from ktrdr_vm.escalation.inbox_protocol import answer_request, parse_request
from ktrdr_vm.escalation.packet import MAX_PACKET, PacketError
from ktrdr_vm.escalation.store import MAX_PENDING, Answer, Escalation, EscalationStore
from ktrdr_vm.host.paths import PROJECT

TOOL = PROJECT / "ktrdr_vm" / "guest" / "data" / "ktrdr-escalate"
SIX = [
    "--blocked",
    "it",
    "--why",
    "so",
    "--option",
    "a",
    "--option",
    "b",
    "--recommendation",
    "a",
    "--decision",
    "a?",
    "--evidence",
    "log",
]


class Inbox:
    """The inbox in a process of its own, and the guard's end of its channel in a thread."""

    def __init__(self, place: Path) -> None:
        self.store = EscalationStore(place / "escalations", "one")
        self.arrived: list[Escalation] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = self.listener.getsockname()[1]
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.ours.close()
                run_inbox(self.listener, theirs)
            finally:
                os._exit(1)
        theirs.close()
        self.tool = place / "ktrdr-escalate"
        text = TOOL.read_text()
        assert "INBOX = find_inbox()" in text
        self.tool.write_text(text.replace("INBOX = find_inbox()", f'INBOX = "http://127.0.0.1:{self.port}{PATH}"'))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while request := self.ours.recv(256 * 1024):
            try:
                reply = answer_request(self.store, parse_request(request), self.arrived.append)
            except PacketError as error:
                reply = {"error": str(error)}
            self.ours.send(json.dumps(reply).encode())

    def ask(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.tool), *words], input=stdin, capture_output=True, text=True, timeout=60
        )

    def post(self, body: bytes, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", PATH, body, headers)
        return connection.getresponse().status

    def stop(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.listener.close()
        self.ours.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    made = Inbox(tmp_path)
    yield made
    made.stop()


def test_the_tool_asks_and_reads_the_answer(inbox: Inbox) -> None:
    asked = inbox.ask("network", "api.example.com", "443", "22", *SIX, "--seconds", "60")
    assert (asked.returncode, asked.stdout) == (0, "e1 network pending\n"), asked.stderr
    (one,) = inbox.store.list()
    assert (one.packet.request, one.packet.options, one.packet.seconds) == (
        {"host": "api.example.com", "ports": [22, 443]},
        ("a", "b"),
        60,
    )
    assert [each.id for each in inbox.arrived] == ["e1"]
    inbox.store.answer(
        "e1", "approved", Answer("owner", "for an hour", "t", {"host": "api.example.com", "ports": [443]}, 30)
    )
    shown = inbox.ask("show", "e1", "--wait")
    assert (shown.returncode, "approved" in shown.stdout, "for an hour" in shown.stdout) == (0, True, True)


def test_wait_ends_with_the_answer_or_with_its_limit(inbox: Inbox) -> None:
    assert inbox.ask("decision", *SIX, "--wait", "--timeout", "1").returncode == 4
    threading.Timer(3, lambda: inbox.store.answer("e1", "denied", Answer("owner", "no", "t"))).start()
    waited = inbox.ask("decision", *SIX, "--wait")
    assert (waited.returncode, "reason: no" in waited.stdout) == (1, True)


def test_what_is_not_complete_is_refused_with_its_reason(inbox: Inbox) -> None:
    assert inbox.ask("network", "api.example.com", "--blocked", "x").returncode == 2
    refused = inbox.ask("network", "10.0.0.1", *SIX)
    assert refused.returncode == 2 and "use cidr instead of host" in refused.stderr
    assert inbox.store.list() == []


def test_garbage_floods_and_forged_identities(inbox: Inbox) -> None:
    assert inbox.post(b"not json") == 400
    assert inbox.post(b"[" * 60_000) == 400
    assert inbox.post(b"x", **{"Content-Length": "99999999999999"}) == 413
    assert inbox.post(b"x" * (MAX_PACKET + 1)) == 413
    asked = json.dumps({"kind": "decision", "instance_id": "another"}).encode()
    assert inbox.post(asked) == 400
    statuses = {inbox.post(b"{}") for _ in range(30)}
    assert 429 in statuses and inbox.store.list() == []
    assert inbox.ask("list").returncode == 0


def _packet(number: int) -> bytes:
    parts = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), f"number {number}")
    return json.dumps({"kind": "decision", "options": ["a"], **parts}).encode()


def test_the_same_packet_again_is_the_same_escalation(inbox: Inbox) -> None:
    assert inbox.post(_packet(1)) == inbox.post(_packet(1)) and [one.id for one in inbox.store.list()] == ["e1"]
    inbox.store.answer("e1", "denied", Answer("owner", "no", "t"))
    inbox.post(_packet(1))
    assert [(one.id, one.current) for one in inbox.store.list()] == [("e1", "denied"), ("e2", "pending")], (
        "a no is not reopened"
    )


def test_ten_thousand_packets_are_twenty_at_most(inbox: Inbox) -> None:
    """Each is right and another one. Who answers sees what came first, the files are bounded, and the inbox goes on."""
    statuses = [inbox.post(_packet(number)) for number in range(10_000)]
    kept = inbox.store.list()
    assert 0 < len(kept) <= MAX_PENDING and statuses.count(429) >= 10_000 - MAX_PENDING
    assert [one.packet.blocked for one in kept[:5]] == [f"number {number}" for number in range(5)]
    assert len(list(inbox.store.directory.iterdir())) <= MAX_PENDING + 1
    assert inbox.ask("list").returncode == 0


def test_a_client_that_holds_the_line_does_not_hold_up_the_inbox_for_long(inbox: Inbox) -> None:
    """Slow bytes end with the request's limit."""
    with socket.create_connection(("127.0.0.1", inbox.port)) as held:
        held.sendall(b"POST " + PATH.encode() + b" HTTP/1.0\r\nContent-Length: 50\r\n\r\n{")
        assert inbox.ask("list").returncode == 0
