"""The guest's OTLP endpoint: HTTP on the gateway address of the instance, served by a process without privileges,
network or credentials.

    POST /v1/traces, /v1/metrics, /v1/logs    OTLP in protobuf or JSON, plain or gzip
         200 accepted; 400, 404, 405, 411, 413, 415 permanent errors; 429, 503 temporary errors, with Retry-After

Accepted requests are stamped with the identity and passed to the sender through a pipe. The answer only confirms that a
request was accepted: the guest does not receive the answer of the collector.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, get_args

from ktrdr_vm.egress.rate_limit import Bucket
from ktrdr_vm.egress.telemetry.bounds import Tally, inflate, read_body
from ktrdr_vm.egress.telemetry.otlp import MAX_BODY, PATHS, Encoding, OtlpError, Stamp, stamp_request

# The header of a request to the sender: the index of its path, the number of records, the number of bytes that follow.
FRAME = struct.Struct("!BII")
TAKEN, FULL = b"\x00", b"\x01"

CONNECTIONS = 16
# Maximum seconds of one request, from its first byte to its last.
REQUEST_LIMIT = 15.0
_PIPE_LIMIT = 5.0
REQUESTS_PER_SECOND, REQUESTS_AT_ONCE = 20.0, 200.0
# Share of a core: a small document in JSON can take long to parse.
CORE, CORE_SECONDS_AT_ONCE = 0.25, 5.0
BYTES_PER_SECOND, BYTES_AT_ONCE = 1024.0 * 1024, 8.0 * 1024 * 1024


class BusyError(Exception):
    """The request is refused for now; it may be repeated after `seconds`."""

    def __init__(self, status: int, seconds: float, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.seconds = seconds


class Relay:
    """The state that all requests of one instance share. `pipe` leads to the sender."""

    def __init__(self, pipe: socket.socket, stamp: Stamp) -> None:
        self.stamp = stamp
        self.tally = Tally()
        self._pipe = pipe
        self._pipe.settimeout(_PIPE_LIMIT)
        self._requests = Bucket(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE)
        self._bytes = Bucket(BYTES_PER_SECOND, BYTES_AT_ONCE)
        self._work = Bucket(CORE, CORE_SECONDS_AT_ONCE)
        self._piping = threading.Lock()
        # Requests are decompressed and parsed one at a time, so that the memory is bounded by what one of them can
        # need.
        self._parsing = threading.Lock()

    def admit(self) -> None:
        """BusyError if the instance sends too many requests."""
        if wait := self._requests.take():
            raise BusyError(429, wait, "rate")

    def take(self, path: str, encoding: Encoding, packed: str, body: bytes) -> None:
        """Stamp one request and pass it on. OtlpError if it is not valid, BusyError if it exceeds a rate or the queue
        is full."""
        with self._parsing:
            if wait := self._work.take(0):
                raise BusyError(429, wait, "rate")
            began = time.thread_time()
            try:
                whole = inflate(body, packed)
                if wait := self._bytes.take(len(whole)):
                    raise BusyError(429, wait, "rate")
                stamped = stamp_request(path, encoding, whole, self.stamp)
            finally:
                self._work.spend(time.thread_time() - began)
        if stamped.claims:
            self.tally.add("claims", stamped.claims)
        if not stamped.records:
            return
        if self._send(FRAME.pack(PATHS.index(path), stamped.records, len(stamped.body)) + stamped.body) != TAKEN:
            raise BusyError(503, 10, "queue")
        self.tally.add("accepted", stamped.records)

    def _send(self, frame: bytes) -> bytes:
        with self._piping:
            try:
                self._pipe.sendall(frame)
                return self._pipe.recv(1)
            except OSError:
                # The pipe may contain a partial frame, from which later frames could not be separated. The guard
                # restarts both processes.
                self._pipe.close()
                return b""

    @property
    def broken(self) -> bool:
        return self._pipe.fileno() < 0


class Handler(BaseHTTPRequestHandler):
    """Handles one request; then the connection ends."""

    relay: Relay
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ktrdr-vm", ""
    timeout = REQUEST_LIMIT

    def handle(self) -> None:
        # A client that sends a byte now and then must not occupy a connection for longer than any other.
        watch = threading.Timer(REQUEST_LIMIT, self._hang_up)
        watch.daemon = True
        watch.start()
        try:
            with contextlib.suppress(OSError):
                super().handle()
        finally:
            watch.cancel()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_POST(self) -> None:
        relay = type(self).relay
        try:
            if self.path not in PATHS:
                raise OtlpError(404, f"the paths are {', '.join(PATHS)}")
            body, reply = self._read()
            relay.admit()
            relay.take(self.path, reply, self.headers.get("Content-Encoding", "").strip().lower(), body)
        except OtlpError as error:
            relay.tally.add("refused")
            self._refuse(error.status, str(error))
        except BusyError as busy:
            relay.tally.add(f"refused_{busy}")
            self._refuse(busy.status, "too much telemetry at once; wait and send it again", retry=busy.seconds)
        except MemoryError:
            relay.tally.add("refused")
            self._refuse(413, "a request has too many parts; send smaller batches")
        else:
            self._say(200, reply, b"{}" if reply == "application/json" else b"")

    def do_GET(self) -> None:
        type(self).relay.tally.add("refused")
        self._refuse(405 if self.path in PATHS else 404, f"POST to {', '.join(PATHS)}")

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is not HTTP. Called by the base class, before there are headers."""
        type(self).relay.tally.add("refused")
        self.request_version = self.protocol_version
        self._refuse(code, "this is not valid HTTP")

    def _read(self) -> tuple[bytes, Encoding]:
        """The body and its encoding. The body is read before the request is answered, so that the answer arrives."""
        lengths, transfers = self.headers.get_all("Content-Length", []), self.headers.get_all("Transfer-Encoding", [])
        if len(lengths) > 1 or len(transfers) > 1:
            raise OtlpError(400, "a header is repeated")
        body = read_body(self.rfile, lengths[0] if lengths else None, transfers[0] if transfers else None)
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        for encoding in get_args(Encoding):
            if kind == encoding:
                return body, encoding
        raise OtlpError(415, f"Content-Type is {' or '.join(get_args(Encoding))}")

    def _refuse(self, status: int, message: str, *, retry: float = 0) -> None:
        """Answer with a Status of OTLP in the encoding of the request. Its second field is the message, here of less
        than 128 bytes."""
        headers = getattr(self, "headers", {})
        if headers.get("Content-Type", "").startswith("application/json"):
            # `message` is a text of this program without quotes.
            return self._say(status, "application/json", b'{"message":"%s"}' % message.encode(), retry=retry)
        text = message.encode()[:127]
        return self._say(status, "application/x-protobuf", b"\x12" + bytes([len(text)]) + text, retry=retry)

    def _say(self, status: int, kind: str, body: bytes, *, retry: float = 0) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if retry:
            self.send_header("Retry-After", str(math.ceil(retry)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if status != 200:
            self._drain()

    def _drain(self) -> None:
        """Read some of the unread input: if a connection is closed with unread bytes, it is reset, and the answer may
        be lost."""
        with contextlib.suppress(OSError, ValueError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            left = MAX_BODY
            while left > 0 and (piece := self.connection.recv(65536)):
                left -= len(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing, because events are counted."""


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._connections = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Further connections wait in the kernel's queue until one has ended, at most for REQUEST_LIMIT.
        self._connections.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing: the guest may close its connections."""


def run_relay(listener: socket.socket, relay: Relay) -> None:
    """Serve until the process ends."""

    class Bound(Handler):
        pass

    Bound.relay = relay
    _Server(listener, Bound).serve_forever(poll_interval=5)
