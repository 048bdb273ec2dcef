"""Sends telemetry to the owner's collector. It holds the credential, and receives the guest's data only after the relay
has parsed it and encoded it again.

The queue is bounded. The identity is in the headers of every request as well: there it is correct even if the one in
the body could not be trusted.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ktrdr_vm.egress.telemetry.bounds import Tally
from ktrdr_vm.egress.telemetry.otlp import MAX_BODY, PATHS, Stamp
from ktrdr_vm.egress.telemetry.relay import FRAME, FULL, TAKEN
from ktrdr_vm.profile.collector import Collector

QUEUE_BYTES = 16 * 1024 * 1024
QUEUE_LENGTH = 512
_LIMIT = 10.0
# Attempts for one request, with pauses that double; then it is dropped and counted. A request that waits delays those
# behind it. The longest pause is in seconds.
_TRIES = 4
_LONGEST_PAUSE = 30.0
_LATER = (429, 502, 503, 504)


@dataclass(frozen=True)
class _Item:
    path: str
    records: int
    body: bytes
    stamp: Stamp


class Sender:
    """`headers` are those of the owner, and are sent only to the collector. `pause` waits for a number of seconds."""

    def __init__(
        self,
        collector: Collector,
        headers: dict[str, str],
        context: ssl.SSLContext | None,
        stamp: Stamp,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stamp = stamp
        self.tally = Tally()
        self._collector = collector
        self._headers = headers
        self._context = context
        self._pause = pause
        self._queue: deque[_Item] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def serve(self, pipe: socket.socket) -> None:
        """Queue what the relay sends, until it ends. A thread delivers it."""
        threading.Thread(target=self._carry, daemon=True).start()
        with pipe, pipe.makefile("rb") as stream:
            while head := stream.read(FRAME.size):
                index, records, size = FRAME.unpack(head)
                # The stamp adds to the size that the guest may send.
                if index >= len(PATHS) or size > 2 * MAX_BODY:
                    raise ValueError("the relay sent an invalid frame")
                pipe.sendall(TAKEN if self.put(PATHS[index], records, stream.read(size)) else FULL)

    def put(self, path: str, records: int, body: bytes) -> bool:
        """Queue one request. False if the queue is full; then the request is dropped and counted."""
        with self._changed:
            if len(self._queue) >= QUEUE_LENGTH or self._bytes + len(body) > QUEUE_BYTES:
                self.tally.add("dropped", records)
                return False
            self._queue.append(_Item(path, records, body, self.stamp))
            self._bytes += len(body)
            self._changed.notify()
            return True

    def _carry(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                item = self._queue[0]
            self.deliver(item.path, item.records, item.body, item.stamp)
            with self._changed:
                # Removed only after its delivery, so that it counts against the limits of the queue until then.
                self._queue.popleft()
                self._bytes -= len(item.body)

    def deliver(self, path: str, records: int, body: bytes, stamp: Stamp) -> None:
        """Send one request to the collector, repeatedly where that may help. The result is counted."""
        for attempt in range(_TRIES):
            status, wait = self._post(path, body, stamp)
            if 200 <= status < 300:
                self.tally.add("sent", records)
                self.tally.add("bytes_out", len(body))
                return
            if status and status not in _LATER:
                break
            if attempt < _TRIES - 1:
                self._pause(min(max(wait, 2.0**attempt), _LONGEST_PAUSE))
        self.tally.add("dropped", records)

    def _post(self, path: str, body: bytes, stamp: Stamp) -> tuple[int, float]:
        """The status, 0 if there was none, and the seconds of Retry-After. A redirect is treated like any other
        status."""
        collector = self._collector
        connection = _Connection(collector, self._context)
        identity = {
            "X-Ktrdr-Instance-Id": stamp.instance_id,
            "X-Ktrdr-Environment": stamp.environment,
            "X-Ktrdr-Run-Id": stamp.run_id,
        }
        try:
            connection.request(
                "POST",
                collector.path + path,
                body,
                {**self._headers, **identity, "Content-Type": "application/x-protobuf"},
            )
            answer = connection.getresponse()
            asked = answer.headers.get("Retry-After", "")
            # The rest of the answer is neither shown to the guest nor kept.
            return answer.status, float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0.0
        except (OSError, http.client.HTTPException, ValueError):
            return 0, 0.0
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection to the address that the owner named, with the host name of the URL in TLS and in Host."""

    def __init__(self, collector: Collector, context: ssl.SSLContext | None) -> None:
        super().__init__(collector.host, collector.port, timeout=_LIMIT)
        self._address = collector.address or collector.host
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), _LIMIT)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host) if self._tls else plain
