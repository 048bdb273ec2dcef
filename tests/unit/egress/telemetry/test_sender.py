"""The sender: a bounded queue, a few tries, and counts of all that becomes of it. And the owner's settings that it is
made from."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import asdict
from typing import Any

import pytest

from ktrdr_vm.egress.telemetry import child
from ktrdr_vm.egress.telemetry.otlp import PATHS, Stamp
from ktrdr_vm.egress.telemetry.relay import FRAME, FULL, TAKEN, BusyError, Relay
from ktrdr_vm.egress.telemetry.sender import QUEUE_BYTES, QUEUE_LENGTH, Sender
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.plan.facts import PLACEHOLDER
from ktrdr_vm.plan.telemetry import render_sender
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy, parse_policy
from ktrdr_vm.profile.collector import Collector, parse_collector, parse_headers
from ktrdr_vm.profile.load import LoadedProfile, load_profile

STAMP = Stamp("one", "sandbox", "r")
HERE = Collector("http", "127.0.0.1", 4318, address="127.0.0.1")


class Scripted(Sender):
    """Answers come from a list, and pauses are kept."""

    def __init__(self, *answers: tuple[int, float]) -> None:
        self.pauses: list[float] = []
        self.answers = list(answers)
        super().__init__(HERE, {}, None, STAMP, pause=self.pauses.append)

    def _post(self, path: str, body: bytes, stamp: Stamp) -> tuple[int, float]:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "counted", "pauses"),
    [
        ([(200, 0.0)], {"sent": 3, "bytes_out": 4}, []),
        ([(503, 0.0), (202, 0.0)], {"sent": 3, "bytes_out": 4}, [1.0]),
        ([(429, 7.0), (0, 0.0), (200, 0.0)], {"sent": 3, "bytes_out": 4}, [7.0, 2.0]),
        ([(0, 0.0)] * 4, {"dropped": 3}, [1.0, 2.0, 4.0]),
        ([(503, 86400.0)] * 4, {"dropped": 3}, [30.0] * 3),
        ([(400, 0.0)], {"dropped": 3}, []),
        ([(302, 0.0)], {"dropped": 3}, []),
    ],
)
def test_it_tries_again_where_that_may_help(answers: Any, counted: dict[str, int], pauses: list[float]) -> None:
    sender = Scripted(*answers)
    sender.deliver("/v1/logs", 3, b"body", STAMP)
    assert (sender.tally.take(), sender.pauses, sender.answers) == (counted, pauses, [])


def test_the_queue_is_bounded_by_number_and_by_bytes() -> None:
    sender = Scripted()
    assert all(sender.put("/v1/logs", 1, b"x") for _ in range(QUEUE_LENGTH))
    assert not sender.put("/v1/logs", 5, b"x")
    assert sender.tally.take() == {"dropped": 5}
    other = Scripted()
    assert other.put("/v1/logs", 1, bytes(QUEUE_BYTES)) and not other.put("/v1/logs", 1, b"x")


def test_a_relay_that_breaks_the_agreement_ends_the_sender() -> None:
    """Whoever took the relay over gets no more than a frame of the agreed size into the queue."""
    for frame in (FRAME.pack(3, 1, 1), FRAME.pack(0, 1, 2**31)):
        ours, theirs = socket.socketpair()
        ours.sendall(frame)
        with pytest.raises(ValueError, match="invalid frame"):
            Scripted().serve(theirs)


def make_relay(answer: bytes) -> tuple[Relay, list[bytes]]:
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def sender() -> None:
        with theirs, theirs.makefile("rb") as stream:
            while head := stream.read(FRAME.size):
                received.append(head + stream.read(FRAME.unpack(head)[2]))
                theirs.sendall(answer)

    threading.Thread(target=sender, daemon=True).start()
    return Relay(ours, STAMP), received


LOG = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{}]}]}]}'


def test_the_relay_hands_on_what_it_has_stamped() -> None:
    relay, received = make_relay(TAKEN)
    relay.take("/v1/logs", "application/json", "", LOG)
    relay.take("/v1/logs", "application/json", "", b"{}")
    index, records, size = FRAME.unpack(received[0][: FRAME.size])
    assert (PATHS[index], records, size, len(received)) == ("/v1/logs", 2, len(received[0]) - FRAME.size, 1)
    assert b"ktrdr.instance_id" in received[0] and relay.tally.take() == {"accepted": 2}


def test_what_takes_long_to_read_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a core: whoever has used more waits, and the next one after that is served."""
    relay, received = make_relay(TAKEN)
    clock = iter([0.0, 7.0])
    monkeypatch.setattr("ktrdr_vm.egress.telemetry.relay.time.thread_time", lambda: next(clock, 7.0))
    relay.take("/v1/logs", "application/json", "", LOG)
    with pytest.raises(BusyError) as caught:
        relay.take("/v1/logs", "application/json", "", LOG)
    assert caught.value.status == 429 and 6 < caught.value.seconds <= 8 and len(received) == 1
    monkeypatch.setattr(relay._work, "_clock", lambda: time.monotonic() + 9)
    relay.take("/v1/logs", "application/json", "", LOG)
    assert len(received) == 2


def test_a_full_queue_and_a_lost_sender_are_said() -> None:
    full, _ = make_relay(FULL)
    with pytest.raises(BusyError) as caught:
        full.take("/v1/logs", "application/json", "", LOG)
    assert caught.value.status == 503 and not full.broken
    ours, theirs = socket.socketpair()
    theirs.close()
    lost = Relay(ours, STAMP)
    with pytest.raises(BusyError):
        lost.take("/v1/logs", "application/json", "", LOG)
    assert lost.broken


# -- the owner's settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "more", "expected"),
    [
        ("http://127.0.0.1:4318", {}, Collector("http", "127.0.0.1", 4318, address="127.0.0.1")),
        ("http://10.0.0.5", {}, Collector("http", "10.0.0.5", 4318, address="10.0.0.5")),
        ("https://otlp.example.com/otlp/", {}, Collector("https", "otlp.example.com", 443, path="/otlp")),
        (
            "https://otlp.example.com",
            {"address": "10.0.0.5"},
            Collector("https", "otlp.example.com", 443, address="10.0.0.5"),
        ),
    ],
)
def test_a_collector_is_a_url_and_perhaps_an_address(url: str, more: dict[str, str], expected: Collector) -> None:
    assert parse_collector({"collector": url, **more}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ftp://127.0.0.1", "http://user:pass@otlp.example.com", "http://localhost:4318", "http://127.0.0.1:0", "http://127.0.0.1:99999",
        "http://999.0.0.1", "http://otlp.example.com/?a=b", "http://otlp.example.com/../x y", "http://*.example.com", "http://[::1]:4318",
    ],
)  # fmt: skip
def test_what_is_no_collector_is_an_error_of_the_policy(text: str) -> None:
    with pytest.raises(DocumentError, match=r"telemetry\.collector"):
        parse_policy(f'telemetry: {{collector: "{text}"}}\n', "policy.yaml")


def test_two_addresses_for_one_collector_are_an_error() -> None:
    with pytest.raises(DocumentError, match="are different"):
        parse_policy("telemetry: {collector: 'http://127.0.0.1', address: 10.0.0.1}\n", "policy.yaml")


PROFILE = "version: 1\nname: p\nimage: x\ntelemetry: {otlp: true}\n"


def load(text: str) -> LoadedProfile:
    return load_profile(text, "p.yaml", lambda *_: ("", b""))


def test_without_a_collector_of_the_owner_it_is_refused_with_its_place() -> None:
    [problem] = check_policy(load(PROFILE), OwnerPolicy(), "/w")
    assert (problem.path, problem.line) == ("telemetry.otlp", 4) and "collector" in problem.message
    assert check_policy(load(PROFILE), OwnerPolicy(collector=HERE), "/w") == []
    assert check_policy(load(PROFILE.replace("true", "false")), OwnerPolicy(), "/w") == []


def test_the_variables_of_telemetry_stand_once() -> None:
    with pytest.raises(DocumentError, match="which environment sets too"):
        load(PROFILE + "environment: {OTEL_EXPORTER_OTLP_ENDPOINT: http://elsewhere}\n")
    assert load(PROFILE.replace("true", "false") + "environment: {OTEL_EXPORTER_OTLP_ENDPOINT: http://elsewhere}\n")


def test_headers_are_lines() -> None:
    assert parse_headers("# x\n\nAuthorization: Bearer a:b\nX-Scope-OrgID: 1\n") == {
        "Authorization": "Bearer a:b",
        "X-Scope-OrgID": "1",
    }
    for text in ("Authorization", "a b: c", "X: a\0b", ": v", "Ä: v"):
        with pytest.raises(ValueError, match="line 1"):
            parse_headers(text)


def test_the_sender_may_dial_one_place() -> None:
    exact = render_sender(HERE, PLACEHOLDER.sender_uid)
    assert "ip daddr 127.0.0.1 tcp dport 4318 accept\n        counter name sender_strayed drop" in exact
    named = render_sender(Collector("https", "otlp.example.com", 443), PLACEHOLDER.sender_uid)
    assert named.index("@reserved") < named.index("tcp dport 443 accept") < named.rindex("drop")
    assert render_sender(None, "x") == ""


@pytest.mark.parametrize("ca_file", ["", "/etc/ktrdr-vm/ca.pem"])
def test_a_certificate_is_verified_by_the_owners_authorities_or_those_of_the_host(
    monkeypatch: pytest.MonkeyPatch, ca_file: str
) -> None:
    named: list[str | None] = []
    context = object()

    def make_context(cafile: str | None = None) -> object:
        named.append(cafile)
        return context

    monkeypatch.setattr(child.ssl, "create_default_context", make_context)
    secure = child._make_sender({"collector": asdict(Collector("https", "c.example", 443, ca_file=ca_file))}, STAMP)
    assert named == [ca_file or None] and secure._context is context
    plain = child._make_sender({"collector": asdict(Collector("http", "c.example", 80, ca_file=ca_file))}, STAMP)
    assert plain._context is None and len(named) == 1
