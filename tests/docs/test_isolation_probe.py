"""The isolation gate's probe can tell an open door from a closed one: tried against sockets of this machine's
loopback."""

from __future__ import annotations

import importlib.util
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "playbooks" / "files" / "isolation-probe.py"
NAME = "isolation-probe.example.org"


@pytest.fixture(scope="module")
def probe():
    spec = importlib.util.spec_from_file_location("isolation_probe", PROBE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["LIMIT"] = 0.5
    return module


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on a free port of 127.0.0.1 that treats one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def hang_up(connection: socket.socket) -> None:
    connection.recv(4096)


@contextmanager
def answering(reply: Callable[[bytes], bytes]) -> Iterator[int]:
    """A UDP server on a free port of 127.0.0.1 that answers one datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)

        def answer() -> None:
            try:
                data, peer = server.recvfrom(4096)
                server.sendto(reply(data), peer)
            except OSError:
                return

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_connection_and_a_refusal_are_open(probe):
    with listening(lambda connection: None) as port:
        assert probe.connect("127.0.0.1", port)
    assert "refused" in probe.connect("127.0.0.1", free_port())


def test_no_answer_is_closed(probe):
    # A full backlog drops further connections as a firewall would.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        assert probe.connect("127.0.0.1", port) == ""
        for one in waiting:
            one.close()


def test_tls_is_open_when_anybody_answers_and_closed_when_cut_off(probe):
    hello = probe.client_hello(NAME)
    assert hello[0] == 22 and NAME.encode() in hello and NAME.encode() not in probe.client_hello("")

    def alert(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")

    def reset(connection: socket.socket) -> None:
        connection.recv(16)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(alert) as port:
        assert "answered" in probe.say("127.0.0.1", port, hello)
    with listening(reset) as port:
        assert probe.say("127.0.0.1", port, hello) == ""
    with listening(hang_up) as port:
        assert probe.say("127.0.0.1", port, hello) == ""


def test_the_guards_own_refusal_is_no_answer_of_the_world(probe):
    def answer(body: bytes) -> Callable[[socket.socket], None]:
        def serve(connection: socket.socket) -> None:
            connection.recv(4096)
            for piece in (b"HTTP/1.1 403 Forbidden\r\n", b"\r\n" + body):
                connection.sendall(piece)

        return serve

    with listening(answer(b"ktrdr-vm: no\n")) as port:
        assert probe.say("127.0.0.1", port, b"GET / HTTP/1.1\r\n\r\n", b"ktrdr-vm: ") == ""
    with listening(answer(b"somebody else\n")) as port:
        assert "answered" in probe.say("127.0.0.1", port, b"GET / HTTP/1.1\r\n\r\n", b"ktrdr-vm: ")


@pytest.mark.parametrize(
    ("flags", "answers", "closed"),
    [(b"\x81\x83", 0, True), (b"\x81\x80", 1, False), (b"\x81\x80", 0, False), (b"\x81\x82", 0, False)],
    ids=["NXDOMAIN", "an address", "no data", "SERVFAIL"],
)
def test_an_unknown_name_must_not_exist(probe, monkeypatch, flags, answers, closed):
    def reply(query: bytes) -> bytes:
        return query[:2] + flags + query[4:6] + answers.to_bytes(2, "big") + query[8:]

    with answering(reply) as port:
        real = socket.socket.connect
        monkeypatch.setattr(probe, "find_resolver", lambda: "127.0.0.1")
        monkeypatch.setattr(
            probe.socket.socket, "connect", lambda self, address: real(self, (address[0], port)), raising=False
        )
        assert (probe.unknown_name(NAME) == "") is closed


def test_silence_of_the_resolver_proves_nothing(probe, monkeypatch):
    monkeypatch.setattr(probe, "find_resolver", lambda: "127.0.0.1")
    monkeypatch.setattr(probe, "ask_dns", lambda server, name: None)
    assert "the result is unknown" in probe.unknown_name(NAME)


def test_it_fails_and_names_what_is_open(probe, monkeypatch, capsys):
    monkeypatch.setattr(probe, "find_gateway", lambda: "127.0.0.1")
    monkeypatch.setattr(probe, "unknown_name", lambda name: "")
    closed = free_port()
    with listening(lambda connection: None) as port:
        monkeypatch.setattr(
            sys, "argv", ["probe", f"--tcp=127.0.0.1:{port}", f"--name={NAME}", f"--host-ports={closed}"]
        )
        assert probe.main() == 1
    shown = capsys.readouterr()
    assert f"OPEN    tcp 127.0.0.1:{port}" in shown.out and f"closed  name {NAME}" in shown.out
    assert f"127.0.0.1:{port}" in shown.err and f"127.0.0.1:{closed}" in shown.err
    monkeypatch.setattr(sys, "argv", ["probe", f"--name={NAME}"])
    assert probe.main() == 0
