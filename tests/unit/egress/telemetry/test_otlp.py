"""What a guest claims about its identity is taken out wherever it can stand, and the true one is on every resource."""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import Any, Final

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ktrdr_vm.egress.rate_limit import Bucket
from ktrdr_vm.egress.telemetry import otlp
from ktrdr_vm.egress.telemetry.bounds import Tally, inflate, read_body
from ktrdr_vm.egress.telemetry.otlp import MAX_BODY, OtlpError, Stamp, stamp_request

STAMP = Stamp("true-one", "sandbox", "run-1")
TRUE = {
    "service.namespace": "true-one",
    "ktrdr.instance_id": "true-one",
    "ktrdr.environment": "sandbox",
    "ktrdr.run_id": "run-1",
}
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
FORGED = "forged-value"


def stamp(path: str, message: Any, encoding: otlp.Encoding = PROTOBUF) -> tuple[otlp.Stamped, Any]:
    body = message.SerializeToString() if encoding == PROTOBUF else to_json(message)
    stamped = stamp_request(path, encoding, body, STAMP)
    return stamped, type(message).FromString(stamped.body)


def to_json(message: Any) -> bytes:
    """OTLP's JSON: IDs in hexadecimal digits."""

    def turn(value: Any) -> Any:
        if isinstance(value, dict):
            ids = ("traceId", "spanId", "parentSpanId")
            return {key: base64.b64decode(one).hex() if key in ids else turn(one) for key, one in value.items()}
        return [turn(one) for one in value] if isinstance(value, list) else value

    return json.dumps(turn(json_format.MessageToDict(message))).encode()


def forge(attributes: Any, key: str = "ktrdr.instance_id") -> None:
    attributes.add(key=key).value.string_value = FORGED


def traces() -> ExportTraceServiceRequest:
    """A claim at every level of a trace."""
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    forge(group.resource.attributes)
    forge(group.resource.attributes, "ktrdr.environment")
    scope = group.scope_spans.add()
    forge(scope.scope.attributes, "ktrdr.run_id")
    span = scope.spans.add(trace_id=bytes(range(16)), span_id=bytes(range(8)), name="work")
    span.attributes.add(key="kept").value.string_value = "yes"
    forge(span.attributes)
    forge(span.events.add(name="e").attributes)
    forge(span.links.add(trace_id=bytes(range(16)), span_id=bytes(range(8))).attributes)
    return made


def metrics() -> ExportMetricsServiceRequest:
    """A claim at every level of every kind of metric."""
    made = ExportMetricsServiceRequest()
    group = made.resource_metrics.add().scope_metrics.add()
    forge(group.scope.attributes)
    for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
        metric = group.metrics.add(name=kind)
        forge(metric.metadata)
        point = getattr(metric, kind).data_points.add()
        forge(point.attributes)
        if kind != "summary":
            forge(point.exemplars.add().filtered_attributes)
    return made


def logs() -> ExportLogsServiceRequest:
    """A claim in a record, and in what its body and its attributes hold."""
    made = ExportLogsServiceRequest()
    record = made.resource_logs.add().scope_logs.add().log_records.add()
    forge(record.attributes)
    forge(record.body.kvlist_value.values)
    inner = record.body.kvlist_value.values.add(key="ktrdr").value.kvlist_value
    forge(inner.values, "run_id")
    nested = record.attributes.add(key="list").value.array_value.values.add().kvlist_value
    forge(nested.values)
    return made


EVERY = [("/v1/traces", traces, 1, 6), ("/v1/metrics", metrics, 5, 15), ("/v1/logs", logs, 1, 4)]


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
@pytest.mark.parametrize(("path", "make", "records", "claims"), EVERY, ids=["traces", "metrics", "logs"])
def test_a_claim_at_any_level_is_taken_out(
    path: str, make: Any, records: int, claims: int, encoding: otlp.Encoding
) -> None:
    assert FORGED.encode() in make().SerializeToString()
    stamped, message = stamp(path, make(), encoding)
    assert FORGED.encode() not in stamped.body
    assert (stamped.records, stamped.claims) == (records, claims)
    [group] = getattr(message, message.DESCRIPTOR.fields[0].name)
    assert {one.key: one.value.string_value for one in group.resource.attributes} == TRUE
    assert len(group.resource.attributes) == len(TRUE)


def test_without_the_walk_each_claim_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection taken out: the same requests then carry what was forged."""
    monkeypatch.setattr(otlp, "_CLAIMS", ("nothing",))
    for path, make, _, _ in EVERY:
        assert FORGED.encode() in stamp(path, make())[0].body


@pytest.mark.parametrize(
    "key",
    [
        "ktrdr.instance_id", "ktrdr_instance_id", "KTRDR.Instance.ID", "ktrdr-instance-id", "ktrdr.instanceId", " ktrdr.instance_id",
        "ktrdr.instance_id\0", "\uff4btrdr.instance_id", "resource.ktrdr.instance_id", "ktrdr." + "." * 5000 + "run_id", "ktrdr.environment",
    ],
)  # fmt: skip
def test_a_claim_in_other_letters_is_one(key: str) -> None:
    made = ExportTraceServiceRequest()
    forge(made.resource_spans.add().scope_spans.add().spans.add().attributes, key)
    assert FORGED.encode() not in stamp("/v1/traces", made)[0].body


@pytest.mark.parametrize(
    "key", ["ktrdr.operation", "instance_id", "run_id", "environment", "ktrdr.instance_id.hash", ""]
)
def test_what_is_no_claim_stays(key: str) -> None:
    made = ExportTraceServiceRequest()
    forge(made.resource_spans.add().scope_spans.add().spans.add().attributes, key)
    assert FORGED.encode() in stamp("/v1/traces", made)[0].body


def test_the_rest_is_as_it_was_in_both_encodings() -> None:
    original = traces()
    for encoding in (PROTOBUF, JSON):
        span = stamp("/v1/traces", original, encoding)[1].resource_spans[0].scope_spans[0].spans[0]
        assert (span.trace_id, span.span_id, span.name) == (bytes(range(16)), bytes(range(8)), "work")
        assert [(one.key, one.value.string_value) for one in span.attributes] == [("kept", "yes")]


def test_a_resource_that_is_not_there_is_made() -> None:
    made = ExportLogsServiceRequest()
    made.resource_logs.add().scope_logs.add().log_records.add(severity_text="INFO")
    assert not made.resource_logs[0].HasField("resource")
    resource = stamp("/v1/logs", made)[1].resource_logs[0].resource
    assert {one.key: one.value.string_value for one in resource.attributes} == TRUE


def test_what_cannot_be_looked_into_is_not_passed_on() -> None:
    """A field of a later version, or of one long gone, which a collector may read."""
    hidden = b"\xc2\x3e" + bytes([len(FORGED)]) + FORGED.encode()  # field 1000
    made = ExportTraceServiceRequest()
    made.resource_spans.add().scope_spans.add().spans.add(name="x")
    made.resource_spans[0].MergeFromString(hidden)
    made.MergeFromString(hidden)
    made.resource_spans[0].schema_url = f"https://evil.example/{FORGED}"
    assert made.SerializeToString().count(FORGED.encode()) == 3
    assert FORGED.encode() not in stamp("/v1/traces", made)[0].body
    made.resource_spans[0].schema_url = "https://opentelemetry.io/schemas/1.27.0"
    assert stamp("/v1/traces", made)[1].resource_spans[0].schema_url == "https://opentelemetry.io/schemas/1.27.0"


def wrap(body: bytes, *tags: int) -> bytes:
    """Length-delimited fields around a body, the innermost tag last."""
    for tag in reversed(tags):
        size, head = len(body), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        body = bytes([tag]) + head + bytes([size]) + body
    return body


def _deep(levels: int) -> bytes:
    value = b"\x0a\x01x"
    for _ in range(levels):
        value = wrap(value, 0x2A, 0x0A)
    return wrap(value, 0x0A, 0x12, 0x12, 0x2A)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        (PROTOBUF, b"\xff" * 50, 400),
        (PROTOBUF, wrap(b"\xff", 0x0A, 0x12, 0x12), 400),
        (PROTOBUF, b"\x0a\x00" * 1_000_000, 413),
        (PROTOBUF, wrap(b"\x12\x00" * 900_000, 0x0A, 0x12), 413),
        (PROTOBUF, bytes(MAX_BODY + 1), 413),
        (JSON, b"", 400),
        (JSON, b"null", 400),
        (JSON, b"[]", 400),
        (JSON, b"[" * 1_000_000, 400),
        (JSON, b'{"a":' * 300_000, 400),
        (JSON, b'{"resourceLogs":[' + b"{}," * 500_000 + b"{}]}", 413),
        (JSON, b'{"resourceLogs": NaN}', 400),
        (JSON, b'{"resourceLogs": 5}', 400),
        (JSON, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"xyz"}]}]}]}', 400),
        (JSON, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":' + b"9" * 50_000 + b"}]}]}]}", 400),
        (JSON, '{"resourceLogs":"\ud800"}'.encode("utf-8", "surrogatepass"), 400),
        (JSON, b"\xff\xfe{", 400),
    ],
)  # fmt: skip
def test_bombs_and_garbage_are_refused(encoding: otlp.Encoding, body: bytes, status: int) -> None:
    with pytest.raises(OtlpError) as caught:
        stamp_request("/v1/logs", encoding, body, STAMP)
    assert caught.value.status == status and len(str(caught.value)) < 128


ATTRIBUTE = st.recursive(
    st.text(max_size=5).map(lambda text: {"stringValue": text})
    | st.integers(-(2**63), 2**63 - 1).map(lambda number: {"intValue": number}),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: {"arrayValue": {"values": values}})
        | st.lists(st.tuples(st.sampled_from(["ktrdr", "run_id", "a", "ktrdr.run_id"]), inner), max_size=3).map(
            lambda pairs: {"kvlistValue": {"values": [{"key": key, "value": value} for key, value in pairs]}}
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["ktrdr.run_id", "ktrdr_environment", "Ktrdr.InstanceId", "a", "ktrdr", "service.namespace"]
) | st.text(max_size=8)
ATTRIBUTES = st.lists(st.tuples(KEYS, ATTRIBUTE).map(lambda pair: {"key": pair[0], "value": pair[1]}), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(ATTRIBUTES, ATTRIBUTES, ATTRIBUTES, st.booleans()), max_size=3))
def test_whatever_is_sent_nothing_but_the_truth_comes_out(groups: list[Any]) -> None:
    document = {
        "resourceSpans": [
            ({"resource": {"attributes": of_resource}} if has else {})
            | {"scopeSpans": [{"scope": {"attributes": of_scope}, "spans": [{"attributes": of_span}]}]}
            for of_resource, of_scope, of_span, has in groups
        ]
    }
    stamped = stamp_request("/v1/traces", JSON, json.dumps(document).encode(), STAMP)
    message = ExportTraceServiceRequest.FromString(stamped.body)
    assert len(message.resource_spans) == len(groups) == stamped.records
    for group in message.resource_spans:
        claimed = [one for one in group.resource.attributes if one.key in TRUE]
        assert {one.key: one.value.string_value for one in claimed} == TRUE and len(claimed) == len(TRUE)
    # Sent once more, only the stamp itself is taken for a claim.
    assert stamp_request("/v1/traces", PROTOBUF, stamped.body, STAMP).claims == 3 * len(groups)


def test_gzip_is_unpacked_within_the_bound() -> None:
    assert inflate(gzip.compress(b"hello"), "gzip") == b"hello" and inflate(b"as it is", "identity") == b"as it is"
    bomb = gzip.compress(bytes(100 * 1024 * 1024))
    assert len(bomb) < 200_000
    for body, encoding, status in (
        (bomb, "gzip", 413), (gzip.compress(b"x")[:-3], "gzip", 400), (gzip.compress(b"x") + b"y", "gzip", 400), (b"x", "gzip", 400),
        (b"x", "deflate", 415), (b"x", "gzip, gzip", 415),
    ):  # fmt: skip
        with pytest.raises(OtlpError) as caught:
            inflate(body, encoding)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("raw", "length", "transfer", "status"),
    [
        (b"", None, None, 411), (b"", "-1", None, 411), (b"", "٣", None, 411), (b"", "9" * 20, None, 413), (b"", str(MAX_BODY + 1), None, 413),
        (b"x", "1", "chunked", 400), (b"x", None, "gzip", 400), (b"zz\r\n", None, "chunked", 400), (b"", None, "chunked", 400),
        (b"fffffff\r\n", None, "chunked", 413), (b"-5\r\n", None, "chunked", 400), (b"5\r\nhel", None, "chunked", 400),
        (b"5\r\nhelloXX", None, "chunked", 400),
    ],
)  # fmt: skip
def test_a_body_is_read_within_its_bound(raw: bytes, length: str | None, transfer: str | None, status: int) -> None:
    with pytest.raises(OtlpError) as caught:
        read_body(io.BytesIO(raw), length, transfer)
    assert caught.value.status == status


def test_bodies_by_length_and_in_chunks() -> None:
    assert read_body(io.BytesIO(b"hello there"), "5", None) == b"hello"
    assert read_body(io.BytesIO(b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"), None, "Chunked") == b"hello"
    with pytest.raises(OSError, match="early"):
        read_body(io.BytesIO(b"hel"), "5", None)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    now = [0.0]
    bucket = Bucket(2, 10, lambda: now[0])
    assert [bucket.take() for _ in range(10)] == [0.0] * 10
    assert bucket.take() == 0.5
    now[0] = 1.0
    assert (bucket.take(2), bucket.take()) == (0.0, 0.5)
    now[0] = 1000.0
    assert bucket.take(10) == 0.0 and bucket.take(11) > 0


def test_a_tally_is_taken_once() -> None:
    tally = Tally()
    tally.add("a")
    tally.add("a", 2)
    assert (tally.take(), tally.take()) == ({"a": 3}, {})
