"""How much fits into one request of a guest: the last that is accepted, and the first that is not."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ktrdr_vm.egress.telemetry.otlp import (
    _MAX_JSON_VALUES,
    MAX_ATTRIBUTES,
    MAX_MESSAGES,
    MAX_RECORDS,
    MAX_RESOURCES,
    Encoding,
    OtlpError,
    Stamp,
    stamp_request,
)

STAMP = Stamp("one", "sandbox", "r1")
PROTOBUF: Encoding = "application/x-protobuf"
JSON: Encoding = "application/json"


def stamp(made: ExportTraceServiceRequest, encoding: Encoding = PROTOBUF) -> ExportTraceServiceRequest:
    body = made.SerializeToString() if encoding == PROTOBUF else json_format.MessageToJson(made).encode()
    return ExportTraceServiceRequest.FromString(stamp_request("/v1/traces", encoding, body, STAMP).body)


def _request(resources: int = 1, records: int = 1, events: int = 0) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    for _ in range(resources):
        made.resource_spans.add()
    spans = made.resource_spans[0].scope_spans.add().spans
    for _ in range(records):
        spans.add()
    for _ in range(events):
        spans[0].events.add()
    return made


def test_more_attributes_than_fit_are_cut_and_counted() -> None:
    made = _request()
    span = made.resource_spans[0].scope_spans[0].spans[0]
    for number in range(MAX_ATTRIBUTES + 1):
        span.attributes.add(key=f"k{number}").value.int_value = number
    span.dropped_attributes_count = 2**32 - 1
    cut = stamp(made).resource_spans[0].scope_spans[0].spans[0]
    assert len(cut.attributes) == MAX_ATTRIBUTES and cut.dropped_attributes_count == 2**32 - 1
    # A data point has no such count.
    other = ExportMetricsServiceRequest()
    point = other.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add(as_int=1)
    for number in range(MAX_ATTRIBUTES + 1):
        point.attributes.add(key=f"k{number}").value.int_value = number
    resource = other.resource_metrics[0].resource
    for number in range(MAX_ATTRIBUTES + 2):
        resource.attributes.add(key=f"k{number}").value.int_value = number
    group = ExportMetricsServiceRequest.FromString(
        stamp_request("/v1/metrics", PROTOBUF, other.SerializeToString(), STAMP).body
    ).resource_metrics[0]
    assert len(group.scope_metrics[0].metrics[0].gauge.data_points[0].attributes) == MAX_ATTRIBUTES
    # The identity is added to the list that was cut.
    assert (
        len(group.resource.attributes) == MAX_ATTRIBUTES + len(STAMP.attributes)
        and group.resource.dropped_attributes_count == 2
    )


@pytest.mark.parametrize(
    ("encoding", "kind", "levels"),
    [(PROTOBUF, "array", 18), (PROTOBUF, "kvlist", 18), (JSON, "array", 18), (JSON, "kvlist", 14)],
)
def test_values_in_one_another_are_bounded(encoding: Encoding, kind: str, levels: int) -> None:
    def nest(depth: int) -> ExportTraceServiceRequest:
        made = ExportTraceServiceRequest()
        value = made.resource_spans.add().scope_spans.add().spans.add().attributes.add(key="k").value
        for _ in range(depth):
            value = value.array_value.values.add() if kind == "array" else value.kvlist_value.values.add(key="x").value
        value.int_value = 1
        return made

    stamp(nest(levels), encoding)
    with pytest.raises(OtlpError) as caught:
        stamp(nest(levels + 1), encoding)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        (_request(resources=MAX_RESOURCES), _request(resources=MAX_RESOURCES + 1)),
        (_request(records=MAX_RECORDS), _request(records=MAX_RECORDS + 1)),
        # The others are the request, and what the events are in: the spans of a resource and of a scope, and the span.
        (_request(events=MAX_MESSAGES - 4), _request(events=MAX_MESSAGES - 3)),
    ],
    ids=["resources", "records", "parts"],
)
def test_so_many_fit_into_a_request(fits: ExportTraceServiceRequest, beyond: ExportTraceServiceRequest) -> None:
    stamp(fits)
    with pytest.raises(OtlpError) as caught:
        stamp(beyond)
    assert caught.value.status == 413


def test_so_many_values_fit_into_json() -> None:
    # Two of them are the list and what is in it; unknown fields are left out.
    text = b'{"resourceLogs": [], "x": [' + b"0," * (_MAX_JSON_VALUES - 3) + b"0]}"
    stamp_request("/v1/logs", JSON, text, STAMP)
    with pytest.raises(OtlpError) as caught:
        stamp_request("/v1/logs", JSON, text.replace(b"[0", b"[0,0", 1), STAMP)
    assert caught.value.status == 413
