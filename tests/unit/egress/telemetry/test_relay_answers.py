"""What a guest is answered at the endpoint for telemetry, byte for byte, and for how long a connection is served."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from ktrdr_vm.egress.telemetry import relay as relay_module
from ktrdr_vm.egress.telemetry.otlp import Stamp
from ktrdr_vm.egress.telemetry.relay import FRAME, FULL, REQUESTS_AT_ONCE, TAKEN, Handler, Relay

LOG = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}]}]}]}'
HEAD = b"POST /v1/logs HTTP/1.1\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(LOG) + LOG


def make_relay(answer: bytes = TAKEN) -> Relay:
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs, theirs.makefile("rb") as stream:
            while head := stream.read(FRAME.size):
                stream.read(FRAME.unpack(head)[2])
                theirs.sendall(answer)

    threading.Thread(target=send, daemon=True).start()
    return Relay(ours, Stamp("one", "sandbox", "r1"))


def ask(relay: Relay, raw: bytes, *, ends: bool = True) -> bytes:
    """The whole answer to these bytes."""

    class Bound(Handler):
        pass

    Bound.relay = relay
    guest, host = socket.socketpair()

    def serve() -> None:
        with host:
            Bound(host, ("guest", 0), None)  # type: ignore[arg-type]

    with guest:
        guest.settimeout(20)
        served = threading.Thread(target=serve, daemon=True)
        served.start()
        guest.sendall(raw)
        if ends:
            guest.shutdown(socket.SHUT_WR)
        said = b""
        while piece := guest.recv(65536):
            said += piece
    served.join(20)
    assert not served.is_alive()
    return said


def read_status(said: bytes) -> int:
    return int(said.split()[1])


def test_what_is_accepted_is_a_200_and_nothing_more() -> None:
    relay = make_relay()
    said = ask(relay, GOOD)
    assert read_status(said) == 200 and said.endswith(b"\r\n\r\n{}") and b"Retry-After" not in said
    plain = b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
    assert ask(relay, plain).endswith(b"\r\n\r\n") and relay.tally.take() == {"accepted": 1}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEAD + b"Content-Length: 1\r\n\r\n{", 400),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/profiles HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404),
        (b"POST /v1/logs?x=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404),
        (b"GET /v1/profiles HTTP/1.1\r\n\r\n", 404),
        *((method + b" /v1/logs HTTP/1.1\r\n\r\n", 405) for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS")),
        (HEAD + b"\r\n", 411),
        (HEAD + b"Content-Length: -1\r\n\r\n", 411),
        (HEAD + b"Content-Length: 99999999\r\n\r\n", 413),
        (b"POST /v1/logs HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
        (HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", 415),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v1/logs HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"TRACE /v1/logs HTTP/1.1\r\n\r\n", 501),
        (b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)  # fmt: skip
def test_what_is_refused_has_the_status_of_the_page_and_is_counted(raw: bytes, status: int) -> None:
    relay = make_relay()
    said = ask(relay, raw)
    assert read_status(said) == status and b"Retry-After" not in said
    assert relay.tally.take() == {"refused": 1}


def test_after_its_burst_a_guest_is_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = make_relay()
    clock = time.monotonic()
    monkeypatch.setattr(relay._requests, "_clock", lambda: clock)
    statuses = [read_status(ask(relay, GOOD)) for _ in range(int(REQUESTS_AT_ONCE))]
    assert set(statuses) == {200}
    said = ask(relay, GOOD)
    assert read_status(said) == 429 and b"\r\nRetry-After: 1\r\n" in said
    assert relay.tally.take() == {"accepted": len(statuses), "refused_rate": 1}
    monkeypatch.setattr(relay._requests, "_clock", lambda: clock + 1)
    assert [read_status(ask(relay, GOOD)) for _ in range(21)] == [200] * 20 + [429]


def test_bytes_are_bounded_as_they_are_after_decompression(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = make_relay()
    clock = time.monotonic()
    monkeypatch.setattr(relay._bytes, "_clock", lambda: clock)
    assert relay._bytes.take(relay_module.BYTES_AT_ONCE) == 0
    said = ask(relay, GOOD)
    assert read_status(said) == 429 and b"\r\nRetry-After: 1\r\n" in said
    monkeypatch.setattr(relay._bytes, "_clock", lambda: clock + 1)
    assert relay._bytes.take(relay_module.BYTES_PER_SECOND) == 0 and relay._bytes.take() > 0


def test_a_full_queue_is_a_503_with_the_time_to_wait() -> None:
    relay = make_relay(FULL)
    said = ask(relay, GOOD)
    assert read_status(said) == 503 and b"\r\nRetry-After: 10\r\n" in said
    assert relay.tally.take() == {"refused_queue": 1}


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\nx"])
def test_who_does_not_go_on_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(relay_module, "REQUEST_LIMIT", 0.2)
    began = time.monotonic()
    said = ask(make_relay(), begun, ends=False)
    assert said == b"" and time.monotonic() - began < 10


def test_so_many_connections_are_served_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = object.__new__(relay_module._Server)
    server._connections = threading.BoundedSemaphore(relay_module.CONNECTIONS)
    served = threading.Semaphore(0)
    done = threading.Event()
    further = threading.Event()

    def hold(*_: object) -> None:
        served.release()
        done.wait(20)

    monkeypatch.setattr(relay_module.ThreadingMixIn, "process_request_thread", hold)

    def accept() -> None:
        for _ in range(relay_module.CONNECTIONS):
            server.process_request(None, None)
        server.process_request(None, None)
        further.set()

    threading.Thread(target=accept, daemon=True).start()
    assert all(served.acquire(timeout=10) for _ in range(relay_module.CONNECTIONS))
    assert not further.wait(0.2)
    done.set()
    assert further.wait(10)
