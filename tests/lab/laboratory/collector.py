"""A collector of telemetry, as the owner of a host runs one: OTLP over HTTP on loopback. It keeps what it got."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ADDRESS, PORT = "127.0.0.1", 4318
_KINDS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}
Mood = Literal["well", "hangs", "redirects", "unavailable", "refuses"]
_STATUS = {"well": 200, "redirects": 307, "unavailable": 503, "refuses": 400}
SECRET_ANSWER = "what-the-collector-says-is-its-own"


@dataclass
class Received:
    """One request, as it came."""

    path: str
    headers: Message
    message: Any

    @property
    def resources(self) -> list[dict[str, list[str]]]:
        """The attributes of every resource: all values of each key."""
        groups = getattr(
            self.message,
            {"/v1/traces": "resource_spans", "/v1/metrics": "resource_metrics", "/v1/logs": "resource_logs"}[self.path],
        )
        found = []
        for group in groups:
            attributes: dict[str, list[str]] = {}
            for one in group.resource.attributes:
                attributes.setdefault(one.key, []).append(one.value.string_value)
            found.append(attributes)
        return found


class LabCollector:
    """Use as a context. `mood` is how it answers; a request is kept unless it hangs."""

    def __init__(self, address: str = ADDRESS, port: int = PORT) -> None:
        self.mood: Mood = "well"
        self.received: list[Received] = []
        self.connections = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.connections += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                while owner.mood == "hangs":
                    time.sleep(0.1)
                if owner.mood in ("well", "redirects"):
                    owner.received.append(Received(self.path, self.headers, _KINDS[self.path].FromString(body)))
                self.send_response(_STATUS[owner.mood])
                if owner.mood == "redirects":
                    self.send_header("Location", "http://127.0.0.1:2222/elsewhere")
                self.send_header("X-Collector", SECRET_ANSWER)
                answer = SECRET_ANSWER.encode()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Kept, not printed."""

        class Server(http.server.ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """One that hung up."""

        self._server = Server((address, port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def __enter__(self) -> LabCollector:
        return self

    def __exit__(self, *_: object) -> None:
        self.mood = "well"
        self._server.shutdown()
        self._server.server_close()

    def resources(self) -> Iterator[dict[str, list[str]]]:
        """Those of everything that came."""
        for one in list(self.received):
            yield from one.resources
