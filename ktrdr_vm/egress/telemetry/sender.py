"""What takes telemetry to the owner's collector: it holds the credential, and sees of the guest only what the relay has
made anew.

The queue is bounded, and the identity is in every request's headers too: they are true even where the body's could not
be trusted.
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
# Tried so often, with pauses that double, then dropped and counted. One that waits holds up those behind it, for these
# seconds.
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
    """`headers` are the owner's; nobody but the collector gets them. `pause` waits so many seconds."""

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
        """Take what the relay sends until it ends, and take it further beside that."""
        threading.Thread(target=self._carry, daemon=True).start()
        with pipe, pipe.makefile("rb") as stream:
            while head := stream.read(FRAME.size):
                index, records, size = FRAME.unpack(head)
                # The stamp is added to what the guest may send.
                if index >= len(PATHS) or size > 2 * MAX_BODY:
                    raise ValueError("the relay does not keep to what was agreed")
                pipe.sendall(TAKEN if self.put(PATHS[index], records, stream.read(size)) else FULL)

    def put(self, path: str, records: int, body: bytes) -> bool:
        """False when the queue is full; then it is dropped."""
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
                # Only now: until it has arrived it takes its room.
                self._queue.popleft()
                self._bytes -= len(item.body)

    def deliver(self, path: str, records: int, body: bytes, stamp: Stamp) -> None:
        """One request to the collector, again where that may help. What becomes of it is counted."""
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
        """The status, 0 when there was none, and the seconds that the collector asks for. A redirect is a status like
        any other."""
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
            # What it says beyond that is nobody's: it is neither shown to the guest nor kept.
            return answer.status, float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0.0
        except (OSError, http.client.HTTPException, ValueError):
            return 0, 0.0
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """To the address that the owner named, with the name of the URL in TLS and in Host."""

    def __init__(self, collector: Collector, context: ssl.SSLContext | None) -> None:
        super().__init__(collector.host, collector.port, timeout=_LIMIT)
        self._address = collector.address or collector.host
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), _LIMIT)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host) if self._tls else plain
