"""Telemetry of a workload: only with its own identity, only to the owner's collector, never at the cost of anything
else.

A guest that is a namespace, and a collector on the lab host's loopback.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import probes
from laboratory.collector import ADDRESS, PORT, SECRET_ANSWER, LabCollector
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import NamespaceGuest, Sabotage, replace
from laboratory.recorder import wait_until
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.telemetry.otlp import MAX_BODY
from ktrdr_vm.egress.telemetry.relay import REQUESTS_AT_ONCE
from ktrdr_vm.egress.telemetry.sender import QUEUE_LENGTH
from ktrdr_vm.plan.guard_interface import OTLP_PORT
from ktrdr_vm.profile.collector import Collector

TOKEN = "lab-collector-token-7Hq2"
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def collector(lab: Lab) -> Iterator[LabCollector]:
    with LabCollector() as made:
        yield made


def open_guest(
    lab: Lab, *sabotage: Sabotage, otlp: bool = True, mode: str = "sandbox", **changes: Any
) -> NamespaceGuest:
    headers = lab.scratch / "collector-headers"
    headers.write_text(f"# the owner's\nAuthorization: Bearer {TOKEN}\n")
    headers.chmod(0o600)
    named = Collector("http", ADDRESS, PORT, address=ADDRESS, headers_file=str(headers))
    profile = {"version": 1, "name": "net", "image": "none", "mode": mode, "telemetry": {"otlp": otlp}} | changes
    return NamespaceGuest(lab.home, profile=profile, collector=named if otlp else None, sabotage=sabotage)


def spans(
    *, count: int = 1, resource: dict[str, str] | None = None, attributes: dict[str, str] | None = None
) -> ExportTraceServiceRequest:
    """Attributes are those of the spans; with `resource` None there is no resource at all."""
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    for name, value in (resource or {}).items():
        group.resource.attributes.add(key=name).value.string_value = value
    scope = group.scope_spans.add()
    for number in range(count):
        one = scope.spans.add(trace_id=bytes(15) + b"\1", span_id=number.to_bytes(7, "big") + b"\1", name="work")
        for name, value in (attributes or {}).items():
            one.attributes.add(key=name).value.string_value = value
    return made


def send(
    guest: NamespaceGuest, body: bytes, path: str = "/v1/traces", method: str = "POST", **headers: Any
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request from inside: status, headers and body of the answer."""
    with inside(guest.namespace):
        connection = http.client.HTTPConnection(guest.gateway, OTLP_PORT, timeout=30)
        try:
            connection.request(
                method, path, body, {**PROTOBUF, **{name.replace("_", "-"): value for name, value in headers.items()}}
            )
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


def counts(guest: NamespaceGuest) -> dict[str, int]:
    """What the ledger has counted so far."""
    found: dict[str, int] = {}
    for row in guest.ledger(kind="telemetry"):
        assert row["instance_id"] == guest.identity.instance_id
        for name, count in row.items():
            if isinstance(count, int):
                found[name] = found.get(name, 0) + count
    return found


def test_an_sdk_is_served_and_everything_has_the_true_identity(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab) as guest:
        variables = guest.plan.gateway_variables(guest.gateway)
        assert variables == {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{guest.gateway}:{OTLP_PORT}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }  # fmt: skip
        GuardClient(guest.paths.guard).begin_run("run-1")
        with inside(guest.namespace):
            exporter = OTLPSpanExporter(endpoint=f"{variables['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/traces", timeout=20)
            provider = TracerProvider(
                resource=Resource({"service.name": "api", "ktrdr.instance_id": "another"}), shutdown_on_exit=False
            )
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            with provider.get_tracer("lab").start_as_current_span("handle") as span:
                span.set_attribute("ktrdr.environment", "production")
        wait_until(lambda: collector.received, "the span arrives", 30)
        [one] = collector.received
        assert one.path == "/v1/traces" and one.headers["Authorization"] == f"Bearer {TOKEN}"
        true = {
            "ktrdr.instance_id": guest.identity.instance_id,
            "ktrdr.environment": "sandbox",
            "ktrdr.run_id": "run-1",
        }
        [resource] = one.resources
        assert {name: resource[name] for name in true} == {name: [value] for name, value in true.items()}
        assert resource["service.name"] == ["api"]
        [sent] = one.message.resource_spans[0].scope_spans[0].spans
        assert sent.name == "handle" and [each.key for each in sent.attributes] == []
        told = {name: one.headers[f"X-Ktrdr-{name}"] for name in ("Instance-Id", "Environment", "Run-Id")}
        assert told == {"Instance-Id": guest.identity.instance_id, "Environment": "sandbox", "Run-Id": "run-1"}
        # The guest learns that it was taken, and nothing of the collector's answer.
        status, headers, body = send(guest, spans().SerializeToString())
        assert (status, body) == (200, b"") and SECRET_ANSWER not in str(headers)
        assert json.loads(send(guest, b'{"resourceSpans":[]}', Content_Type="application/json")[2]) == {}
        wait_until(lambda: counts(guest).items() >= {"sent": 2, "accepted": 2, "claims": 2}.items(), "it is counted")
        # The token is in no file of the instance, and in no argument or environment of what serves it.
        for path in [path for path in guest.paths.directory.rglob("*") if path.is_file()]:
            assert TOKEN.encode() not in path.read_bytes(), path
        status_of = GuardClient(guest.paths.guard).status()
        for role in ("relay", "sender"):
            place = Path(f"/proc/{status_of[role]}")
            assert TOKEN.encode() not in (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            facts = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
            assert facts["Uid"].split()[0] == getattr(guest.allocation, f"{role}_uid")
            assert (
                int(facts["CapEff"], 16) == 0 and facts["NoNewPrivs"].strip() == "1" and facts["Groups"].strip() == ""
            )
        # What reads the guest's bytes has no way out at all.
        own, its = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", status_of["relay"]))
        assert own != its


def test_forged_none_and_in_every_signal_and_encoding(lab: Lab, collector: LabCollector) -> None:
    forged = {
        "ktrdr.instance_id": "another",
        "ktrdr.environment": "interactive",
        "ktrdr.run_id": "x",
        "service.namespace": "another",
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"scope": {"attributes": [{"key": "ktrdr_instance_id", "value": {"stringValue": "another"}}]},
            "logRecords": [{"traceId": "ab" * 16, "body": {"kvlistValue": {"values": [{"key": "ktrdr", "value": {"kvlistValue": {"values": [
                {"key": "run_id", "value": {"stringValue": "another"}}]}}}]}}}]}]}]}  # fmt: skip
    metrics = ExportMetricsServiceRequest()
    point = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add(as_int=1)
    point.attributes.add(key="KTRDR.Instance.Id").value.string_value = "another"
    with open_guest(lab, mode="interactive") as guest:
        GuardClient(guest.paths.guard).begin_run("run-2")
        assert send(guest, spans(resource=forged, attributes={"ktrdr.run_id": "another"}).SerializeToString())[0] == 200
        assert send(guest, spans().SerializeToString())[0] == 200
        assert (
            send(guest, json.dumps(logs).encode(), "/v1/logs", Content_Type="application/json; charset=utf-8")[0] == 200
        )
        assert send(guest, gzip.compress(metrics.SerializeToString()), "/v1/metrics", Content_Encoding="gzip")[0] == 200
        # Its own idea of a credential, and of whose it is, goes nowhere.
        assert (
            send(guest, spans().SerializeToString(), Authorization="Bearer mine", X_Ktrdr_Instance_Id="another")[0]
            == 200
        )
        wait_until(lambda: len(collector.received) == 5, "all arrive", 30)
        true = {
            "ktrdr.instance_id": guest.identity.instance_id,
            "ktrdr.environment": "interactive",
            "ktrdr.run_id": "run-2",
        }
        for resource in collector.resources():
            assert {name: resource[name] for name in true} == {name: [value] for name, value in true.items()}
            assert resource["service.namespace"] == [guest.identity.instance_id]
        for one in collector.received:
            assert b"another" not in one.message.SerializeToString()
            assert (
                one.headers["Authorization"] == f"Bearer {TOKEN}"
                and one.headers["X-Ktrdr-Instance-Id"] == guest.identity.instance_id
            )
        assert collector.received[2].message.resource_logs[0].scope_logs[0].log_records[0].trace_id == b"\xab" * 16
        # Another run of the same instance.
        GuardClient(guest.paths.guard).begin_run("run-3")

        def stamped_anew() -> bool:
            send(guest, spans().SerializeToString())
            return any(resource["ktrdr.run_id"] == ["run-3"] for resource in collector.resources())

        wait_until(stamped_anew, "the new run is known", 20)


GARBAGE = [
    (b"\xff" * 100, "/v1/traces", {}, 400),
    (b"{", "/v1/traces", JSON, 400),
    (b"[" * 100_000, "/v1/logs", JSON, 400),
    (b"x", "/v1/logs", {"Content-Encoding": "gzip"}, 400),
    (gzip.compress(bytes(200 * 1024 * 1024)), "/v1/logs", {"Content-Encoding": "gzip"}, 413),
    (b"\x0a\x00" * 1_000_000, "/v1/traces", {}, 413),
    (bytes(MAX_BODY + 1), "/v1/metrics", {}, 413),
    (b"x", "/v1/traces", {"Content-Encoding": "br"}, 415),
    (b"x", "/v1/traces", {"Content-Type": "text/plain"}, 415),
    (b"x", "/v1development/profiles", {}, 404),
    (b"x", "/v1/traces/../admin", {}, 404),
]


def test_garbage_is_refused_and_none_of_it_goes_on(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab) as guest:
        for body, path, headers, status in GARBAGE:
            named = {name.replace("-", "_"): value for name, value in headers.items()}
            assert send(guest, body, path, **named)[0] == status, (body[:20], path, headers)
        assert send(guest, b"", "/v1/traces", "GET")[0] == 405
        # Bytes that HTTP itself does not allow, lengths that contradict each other, a body that never comes.
        for raw in (
            "\0\1\2\r\n\r\n", "POST /v1/traces HTTP/1.1\r\nHost: x\r\n\r\n", "POST /v1/traces HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST /v1/traces HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            "POST /v1/traces HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):  # fmt: skip
            assert guest.probe("http", address=guest.gateway, port=OTLP_PORT, send=raw)["status"] in (0, 400, 411), raw
        text = spans().SerializeToString().decode("ascii")
        chunked = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw = f"{chunked}{len(text):x}\r\n{text}\r\n0\r\n\r\n"
        assert guest.probe("http", address=guest.gateway, port=OTLP_PORT, send=raw)["status"] == 200
        wait_until(lambda: counts(guest).get("sent") == 1, "what was right has arrived", 30)
        wait_until(lambda: counts(guest).get("refused", 0) >= len(GARBAGE), "what was wrong is counted", 30)
        assert len(collector.received) == 1
        # The relay has lived through all of it.
        assert guest.ledger(kind="guard", message="the telemetry relay ended and is started again") == []


def test_a_flood_is_bounded_and_holds_up_nobody(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab, egress={"allow": [{"host": "allowed.test.lab"}]}) as guest, open_guest(lab) as sibling:
        body = spans().SerializeToString()
        statuses: list[int] = []
        waits: list[str] = []
        for _ in range(int(REQUESTS_AT_ONCE) * 4):
            status, headers, _ = send(guest, body)
            statuses.append(status)
            waits += [headers["Retry-After"]] if status == 429 else []
            if len(waits) == 20:
                break
        assert set(statuses) == {200, 429} and all(1 <= int(wait) <= 5 for wait in waits)
        # Held connections that say nothing take every place; DNS and the sibling's telemetry do not notice.
        with inside(guest.namespace):
            held = [probes.socket.create_connection((guest.gateway, OTLP_PORT), 5) for _ in range(64)]
        assert guest.lookup("allowed.test.lab")["answers"] == 1
        assert send(sibling, body)[0] == 200
        for one in held:
            one.close()
        wait_until(lambda: counts(guest).get("refused_rate", 0) >= 20, "what was too much is counted", 30)
        # Large bodies are bounded by their bytes, also when gzip makes them small on the way.
        large = gzip.compress(spans(count=500, attributes={"note": "x" * 3000}).SerializeToString())
        time.sleep(3)
        answers = [send(guest, large, Content_Encoding="gzip")[0] for _ in range(30)]
        assert 429 in answers and answers[0] == 200


@pytest.mark.parametrize("mood", ["hangs", "unavailable", pytest.param("down", marks=pytest.mark.full)])
def test_a_collector_that_does_not_take_it_costs_only_telemetry(lab: Lab, mood: str) -> None:
    """A bounded queue, then 503; what is given up is counted; when the collector is there again, so is the rest."""
    with LabCollector() as collector, open_guest(lab, egress={"allow": [{"host": "allowed.test.lab"}]}) as guest:
        if mood == "down":
            collector.__exit__()
        else:
            collector.mood = mood  # type: ignore[assignment]
        large = spans(count=300, attributes={"note": "x" * 3000}).SerializeToString()
        statuses: list[int] = []

        def is_full() -> bool:
            statuses.append(send(guest, large)[0])
            return statuses[-1] == 503

        wait_until(is_full, "the queue is full", 60)
        assert set(statuses) <= {200, 429, 503} and statuses.count(200) <= QUEUE_LENGTH
        began = time.monotonic()
        assert guest.lookup("allowed.test.lab")["answers"] == 1
        # Generous for a busy machine; a wait for the collector would be ten seconds and more.
        assert time.monotonic() - began < 8
        wait_until(lambda: counts(guest).get("refused_queue", 0) >= 1, "what found no room is counted", 30)
        if mood == "hangs":
            return  # to give up takes it four times ten seconds
        wait_until(lambda: counts(guest).get("dropped", 0) >= 300, "what is given up is counted", 60)
        if mood == "unavailable":
            collector.mood = "well"
            wait_until(lambda: counts(guest).get("sent", 0) >= 300, "what waited arrives", 60)


def test_a_redirect_is_not_followed_and_a_refusal_is_final(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab) as guest:
        mark = lab.recorder.mark()
        collector.mood = "redirects"
        assert send(guest, spans().SerializeToString())[0] == 200
        wait_until(lambda: counts(guest).get("dropped") == 1, "it is given up", 30)
        collector.mood = "refuses"
        assert send(guest, spans().SerializeToString())[0] == 200
        wait_until(lambda: counts(guest).get("dropped") == 2, "it is given up", 30)
        assert collector.connections == 2 and lab.recorder.hits(mark, "host") == []


def test_it_is_this_guests_only_and_closed_when_nobody_asked(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab) as guest, open_guest(lab, otlp=False) as plain:
        request = "POST /v1/traces HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
        wait_until(lambda: send(guest, b"")[0] == 200, "it serves", 30)
        asked = {"kind": "http", "port": OTLP_PORT, "send": request}
        assert plain.probe_all([asked | {"address": plain.gateway}])[0]["outcome"] == "timeout"
        # Nor the host's own users, nor the collector from a guest.
        assert probes.run(asked | {"address": guest.gateway})["outcome"] != "answered"
        collectors = [
            asked | {"port": PORT, "address": address} for address in (guest.gateway, "198.51.100.254", ADDRESS)
        ]
        assert [one["outcome"] for one in guest.probe_all(collectors)] == ["timeout", "timeout", "refused"]
        assert "telemetry" not in (plain.paths.guard / "ruleset.nft").read_text() and collector.received == []
        assert set(GuardClient(plain.paths.guard).status()) == {"pid", "resolver", "proxy", "parts"}


NO_LIMIT = replace("ruleset-host.nft", "        counter name sender_strayed drop\n    }\n", "    }\n")


def dial(uid: str, *places: tuple[str, int]) -> list[str]:
    """How the user gets on at each place, all at once."""

    def start(address: str, port: int) -> subprocess.Popen[str]:
        code = f"import socket; socket.create_connection(({address!r}, {port}), 1.5); print('connected')"
        return subprocess.Popen(
            ["/usr/bin/python3", "-c", code],
            user=int(uid), group=int(uid), extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    said = [one.communicate(timeout=30) for one in [start(*place) for place in places]]
    return [out.strip() or error.strip().splitlines()[-1] for out, error in said]


def test_the_sender_reaches_the_collector_and_nothing_else(lab: Lab, collector: LabCollector) -> None:
    """By its user, whatever it is talked into. Without the last line of its chain it reaches the host's other
    services."""
    with open_guest(lab) as guest:
        uid = guest.allocation.sender_uid
        said = dial(
            uid,
            (ADDRESS, PORT),
            (ADDRESS, 2222),
            ("198.51.100.10", 443),
            ("192.168.77.9", 9100),
            (guest.gateway, OTLP_PORT),
        )
        assert said == ["connected", *["TimeoutError: timed out"] * 4]
        wait_until(lambda: guest.ledger(kind="drop", rule="sender_strayed"), "it is in the ledger")
    with open_guest(lab, NO_LIMIT) as guest:
        assert dial(guest.allocation.sender_uid, (ADDRESS, 2222)) == ["connected"]


def test_a_collector_by_name_is_dialled_outside_of_reserved_ranges_only(lab: Lab) -> None:
    """The owner gave no address: DNS decides, and cannot decide for the host or the LAN."""
    profile = {"version": 1, "name": "net", "image": "none", "telemetry": {"otlp": True}}
    with NamespaceGuest(lab.home, profile=profile, collector=Collector("https", "allowed.test.lab", 443)) as guest:
        closed = (("127.0.0.1", 2222), ("192.168.77.9", 443), ("198.51.100.254", 2222), ("198.51.100.10", 80))
        said = dial(guest.allocation.sender_uid, ("allowed.test.lab", 443), *closed)
        assert said == ["connected", *["TimeoutError: timed out"] * 4]


def test_children_that_end_are_started_again_and_the_guard_lives(lab: Lab, collector: LabCollector) -> None:
    with open_guest(lab) as guest:
        GuardClient(guest.paths.guard).begin_run("run-9")
        for role in ("relay", "sender"):
            before = GuardClient(guest.paths.guard).status()
            os.kill(int(before[role]), signal.SIGKILL)

            def serves_again() -> bool:
                now = GuardClient(guest.paths.guard).status()
                return now.get(role) not in (None, before[role]) and send(guest, spans().SerializeToString())[0] == 200  # noqa: B023

            wait_until(serves_again, f"{role} is there again", 120)
            assert GuardClient(guest.paths.guard).status()["pid"] == before["pid"]
        wait_until(
            lambda: [one["ktrdr.run_id"] for one in collector.resources()][-1:] == [["run-9"]],
            "the run is still known",
            30,
        )


def test_a_guard_that_knows_of_no_run_stamps_none(lab: Lab, collector: LabCollector) -> None:
    """The identity comes from there, and never from the guest."""
    with open_guest(lab) as guest:
        assert send(guest, spans(resource={"ktrdr.run_id": "mine"}).SerializeToString())[0] == 200
        wait_until(lambda: collector.received, "it arrives", 30)
        assert [one["ktrdr.run_id"] for one in collector.resources()] == [[""]]


def test_an_exporter_is_told_to_wait(lab: Lab, collector: LabCollector) -> None:
    """The SDK's own retry understands what the relay says: it succeeds once there is room."""
    with open_guest(lab) as guest:
        while send(guest, spans().SerializeToString())[0] == 200:
            pass
        with inside(guest.namespace):
            exporter = OTLPSpanExporter(endpoint=f"http://{guest.gateway}:{OTLP_PORT}/v1/traces", timeout=30)
            provider = TracerProvider(shutdown_on_exit=False)
            span = provider.get_tracer("lab").start_span("later")
            span.end()
            assert exporter.export([span]) == SpanExportResult.SUCCESS  # type: ignore[list-item]
