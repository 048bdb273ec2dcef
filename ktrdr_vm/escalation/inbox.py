"""The escalation inbox: HTTP at the gateway of the instance, read by a process without privileges.

    POST /v1/escalations         a packet        201 {id, state}, 400 with every problem, 413, 429
    GET  /v1/escalations         all of them     200 [{id, kind, state, answer}]
    GET  /v1/escalations/<id>    one             200, 404

It belongs to one instance, so a packet cannot claim to be of another. Valid packets are sent to the guard, which checks
them again and stores them.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any

from ktrdr_vm.escalation.inbox_protocol import ListRequest, SubmitRequest
from ktrdr_vm.escalation.packet import MAX_PACKET, PacketError, parse_packet

PATH = "/v1/escalations"
# There is one guest; more than ten a minute mean an agent in a loop.
PER_MINUTE = 10
# Each makes the guard, which is root, read stored files.
READS_PER_MINUTE = 120
_REQUEST_LIMIT = 5.0
_REPLY_LIMIT = 10.0


class Limiter:
    """A limit of `count` in any `seconds`. Refused requests are counted until the count is read."""

    def __init__(
        self, count: int = PER_MINUTE, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._seconds = seconds
        self._clock = clock
        self._times: list[float] = []
        self.refused = 0

    def admit(self) -> bool:
        now = self._clock()
        self._times = [one for one in self._times if now - one < self._seconds]
        if len(self._times) >= self._count:
            self.refused += 1
            return False
        self._times.append(now)
        return True


def rehearse_inbox() -> None:
    """Handle each kind of request once, over a socket pair, so that all modules are imported. Raises the errors that it
    meets."""

    class Handler(_Handler):
        pass

    Handler.ask, Handler.limiter, Handler.reads = (
        staticmethod(lambda request: {"escalations": []}),
        Limiter(),
        Limiter(READS_PER_MINUTE),
    )
    listing = f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for request, status in (
        (listing, 200),
        *((_make_post(body), 400) for body in (b"{}", b"\xff\xfe{\x00", b"\x00\x00\xfe\xff", b"[")),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(request)
            Handler(ours, ("192.0.2.1", 0), None)  # type: ignore[arg-type]
            said = theirs.recv(65536).decode("latin-1").partition("\r\n")[0]
        if f" {status} " not in said:
            raise RuntimeError(f"the inbox answered its test request with {said!r} instead of {status}")


def _make_post(body: bytes) -> bytes:
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def run_inbox(listener: socket.socket, channel: socket.socket) -> None:
    """Serve without end. `channel` is a SEQPACKET socket to the guard: one JSON request, one JSON reply."""
    channel.settimeout(_REPLY_LIMIT)
    limiter = Limiter()

    def ask(request: ListRequest | SubmitRequest) -> dict[str, Any]:
        channel.send(json.dumps(request.to_json()).encode())
        reply: dict[str, Any] = json.loads(channel.recv(256 * 1024))
        return reply

    class Handler(_Handler):
        pass

    Handler.ask, Handler.limiter, Handler.reads = staticmethod(ask), limiter, Limiter(READS_PER_MINUTE)
    # One request at a time: a slow guest delays only itself, for five seconds at most.
    server = TCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever(poll_interval=5)


class _Handler(BaseHTTPRequestHandler):
    ask: Callable[[ListRequest | SubmitRequest], dict[str, Any]]
    limiter: Limiter
    reads: Limiter
    timeout = _REQUEST_LIMIT
    protocol_version = "HTTP/1.0"
    server_version, sys_version = "ktrdr-vm", ""

    def do_GET(self) -> None:
        if self.path != PATH and not self.path.startswith(f"{PATH}/"):
            self._say(404, {"error": f"the only path is {PATH}"})
            return
        if not type(self).reads.admit():
            self._say(429, {"error": f"more than {READS_PER_MINUTE} requests in a minute; poll every few seconds"})
            return
        reply = type(self).ask(ListRequest(self.path[len(PATH) + 1 :][:20]))
        if "error" in reply:
            self._say(404, reply)
        else:
            self._say(200, reply["escalations"])

    def do_POST(self) -> None:
        if self.path != PATH:
            self._say(404, {"error": f"post packets to {PATH}"})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._say(411, {"error": "Content-Length is missing"})
            return
        if len(length) > 9 or int(length) > MAX_PACKET:
            self._say(413, {"error": f"a packet may have at most {MAX_PACKET} bytes"})
            return
        if not type(self).limiter.admit():
            self._say(
                429,
                {
                    "error": (
                        f"more than {PER_MINUTE} packets in a minute; wait, and send one request for all that you need"
                    )
                },
            )
            return
        try:
            packet = parse_packet(json.loads(self.rfile.read(int(length))))
        except PacketError as error:
            self._say(400, {"error": str(error)})
            return
        except (ValueError, RecursionError):
            self._say(400, {"error": "the packet is not valid JSON"})
            return
        suppressed, type(self).limiter.refused = type(self).limiter.refused, 0
        reply = type(self).ask(SubmitRequest(packet.to_json(), suppressed))
        self._say(429 if "error" in reply else 201, reply)

    def _say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing; the ledger records escalations."""
