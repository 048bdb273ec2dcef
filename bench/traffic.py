"""Both ends of the egress rows, each a process of its own: TLS's first message with a name in it, then plain bytes.

The guard's proxy reads the name of a ClientHello and ends no TLS, so what follows need not be encrypted to be the same
for it; encryption by Python at both ends would be most of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time

_SMALL = b"s"
_LARGE = b"l"
_ANSWER = 2048
# A stream of events over plain HTTP, as a model's answer comes: about one every 20 ms.
STREAM_PORT = 80
_EVENTS, _PAUSE = 50, 0.02
NAME = "bench.test.lab"


def make_hello(name: str) -> bytes:
    """The ClientHello of this Python, for this name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    wrapped = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        wrapped.do_handshake()
    return outgoing.read()


def serve(address: str, port: int, size: int) -> None:
    threading.Thread(target=_serve_streams, args=(address,), daemon=True).start()
    with tempfile.TemporaryFile() as content:
        content.truncate(size)
        listener = socket.create_server((address, port), backlog=256)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection, content.fileno(), size), daemon=True).start()


def _serve_one(connection: socket.socket, content: int, size: int) -> None:
    with connection, contextlib.suppress(OSError, EOFError):
        _answer(connection, content, size)


def _answer(connection: socket.socket, content: int, size: int) -> None:
    head = _read(connection, 5)
    _read(connection, int.from_bytes(head[3:5], "big"))
    connection.sendall(b"!")
    if _read(connection, 1) == _SMALL:
        connection.sendall(bytes(_ANSWER))
        return
    sent = 0
    while sent < size:
        sent += os.sendfile(connection.fileno(), content, sent, min(size - sent, 1 << 22))


def _serve_streams(address: str) -> None:
    listener = socket.create_server((address, STREAM_PORT))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_stream, args=(connection,), daemon=True).start()


def _stream(connection: socket.socket) -> None:
    """Chunks that say when they were sent: the clock is the host's, for every process on it."""
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(_EVENTS):
            event = b"data: %.6f\n\n" % time.monotonic()
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            time.sleep(_PAUSE)
        connection.sendall(b"0\r\n\r\n")


def read_stream(name: str, resolver: str) -> float:
    """Milliseconds from an event's sending to its arrival, the median."""
    delays, data = [], b""
    with socket.create_connection((resolve(name, resolver), STREAM_PORT), timeout=60) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        while b"\r\n0\r\n\r\n" not in data:
            piece = connection.recv(65536)
            arrived = time.monotonic()
            if not piece:
                raise EOFError("the stream ended early")
            data += piece
            delays += [(arrived - float(part.split()[0])) * 1000 for part in piece.split(b"data: ")[1:]]
    return statistics.median(delays)


def _read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = connection.recv(count - len(found))
        if not piece:
            raise EOFError("the connection ended early")
        found += piece
    return found


def ask(name: str, port: int, resolver: str, size: int, requests: int, *, lookups: bool) -> None:
    hello = make_hello(NAME)

    # A lookup of its own for each connection, where one is asked: it is the filter's work too.
    fixed = "" if lookups else resolve(name, resolver)

    def connect() -> socket.socket:
        connection = socket.create_connection((fixed or resolve(name, resolver), port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(hello)
        _read(connection, 1)
        return connection

    connect().close()  # what is made at the first use is not what is asked for
    began = time.monotonic()
    with connect() as connection:
        connection.sendall(_LARGE)
        left, buffer = size, bytearray(1 << 20)
        while left > 0:
            count = connection.recv_into(buffer)
            if not count:
                raise EOFError("the download ended early")
            left -= count
    download = time.monotonic() - began
    times = []
    began = time.monotonic()
    for _ in range(requests):
        start = time.monotonic()
        with connect() as connection:
            times.append(time.monotonic() - start)
            connection.sendall(_SMALL)
            _read(connection, _ANSWER)
    found = {"download": download, "requests": time.monotonic() - began, "connect": statistics.median(times) * 1000}
    if lookups:
        # In a guest under emulation the clock is another one.
        found["streamed"] = read_stream(name, resolver)
    print(json.dumps(found))


def resolve(name: str, resolver: str) -> str:
    """The address of a name by this resolver; `system` is the guest's own, and an address is itself."""
    if resolver == "system":
        return socket.gethostbyname(name)
    if resolver == name:
        return name
    # A virtual machine has no such library, and no need of it.
    import dns.message
    import dns.query
    import dns.rdatatype

    answer = dns.query.udp(dns.message.make_query(name, dns.rdatatype.A), resolver, timeout=5)
    return str(next(iter(answer.answer[0])))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        ask(
            sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]), lookups=sys.argv[1] == "ask"
        )
