"""OTLP requests of a guest: parsed, bounded, and stamped with the identity that the host knows. Pure.

Claims of an identity are removed wherever an attribute can be, and the true identity is set on every resource.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

Encoding = Literal["application/x-protobuf", "application/json"]

PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")
# Bytes of a request after decompression. An SDK's batch of 512 spans has about 250 KB.
MAX_BODY = 2 * 1024 * 1024
MAX_RECORDS = 20_000
MAX_RESOURCES = 200
# Messages in a request, without attributes and their values: each one costs time and memory.
MAX_MESSAGES = 60_000
# In one list. Further ones are removed, and counted if OTLP has a count for it.
MAX_ATTRIBUTES = 128
MAX_DEPTH = 40
_MAX_JSON_VALUES = 150_000

REQUESTS: dict[str, type[Message]] = {
    "/v1/traces": traces.ExportTraceServiceRequest,
    "/v1/metrics": metrics.ExportMetricsServiceRequest,
    "/v1/logs": logs.ExportLogsServiceRequest,
}
# Compared without what a backend may ignore: dots, underscores, capitals, nesting.
_CLAIMS = ("ktrdrinstanceid", "ktrdrenvironment", "ktrdrrunid")
# Backends derive the `job` of a metric from it, so it belongs to the identity on resources.
_NAMESPACE = "servicenamespace"
# The rules of a schema rename attributes, so only schemas of OpenTelemetry itself are passed on.
_SCHEMAS = "https://opentelemetry.io/schemas/"
_DROPPED = "dropped_attributes_count"
_ID_FIELDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


class OtlpError(ValueError):
    """The reason why a request is refused; `status` is the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Stamp:
    """The identity that is stamped on telemetry. `environment` is sandbox or interactive."""

    instance_id: str
    environment: str
    run_id: str

    @property
    def attributes(self) -> dict[str, str]:
        return {
            "service.namespace": self.instance_id,
            "ktrdr.instance_id": self.instance_id,
            "ktrdr.environment": self.environment,
            "ktrdr.run_id": self.run_id,
        }


@dataclass
class Stamped:
    """The request that is passed on: OTLP in protobuf, and the number of its spans, data points or log records."""

    body: bytes
    records: int
    claims: int = 0
    """The number of attributes that claimed an identity and were removed."""


def stamp_request(path: str, encoding: Encoding, body: bytes, stamp: Stamp) -> Stamped:
    """The request with the true identity. OtlpError, with the reason, if it is not valid; no other error, whatever the
    bytes."""
    if len(body) > MAX_BODY:
        raise OtlpError(413, f"a request has at most {MAX_BODY} bytes")
    request = REQUESTS[path]()
    (_parse_json if encoding == "application/json" else _parse_protobuf)(body, request)
    # Unknown fields cannot be checked here, and a collector may know them.
    request.DiscardUnknownFields()
    [groups] = [field for field in request.DESCRIPTOR.fields if field.name.startswith("resource_")]
    resources = getattr(request, groups.name)
    if len(resources) > MAX_RESOURCES:
        raise OtlpError(413, f"a request has at most {MAX_RESOURCES} resources")
    walk = _Walk()
    walk.clean(request)
    for group in resources:
        _put(group.resource, stamp)
    if walk.records > MAX_RECORDS:
        raise OtlpError(413, f"a request has at most {MAX_RECORDS} records")
    return Stamped(request.SerializeToString(), walk.records, walk.claims)


def _put(resource: Resource, stamp: Stamp) -> None:
    for index in reversed(range(len(resource.attributes))):
        if _squeeze(resource.attributes[index].key) == _NAMESPACE:
            del resource.attributes[index]
    for name, value in stamp.attributes.items():
        resource.attributes.add(key=name).value.string_value = value


def _squeeze(key: str) -> str:
    """Letters and digits only, normalized: equal for all spellings that a backend may treat as one name."""
    return _squeeze_short(key) if len(key) <= 200 else _squeeze_short.__wrapped__(key)


@lru_cache(maxsize=4096)
def _squeeze_short(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKC", key).casefold())


class _Walk:
    """Visits every message of a request."""

    def __init__(self) -> None:
        self.records = 0
        self.claims = 0
        self._messages = 0

    def clean(self, message: Message, path: str = "", depth: int = 0) -> None:
        """Remove claims of an identity from this message and from all messages in it. `path` is the squeezed names of
        the enclosing attributes."""
        self._messages += 1
        if self._messages > MAX_MESSAGES:
            raise OtlpError(413, "a request has too many parts; send smaller batches")
        if depth > MAX_DEPTH:
            raise OtlpError(400, f"values are nested more than {MAX_DEPTH} deep")
        for field, value in message.ListFields():
            if field.name == "schema_url" and not value.startswith(_SCHEMAS):
                message.ClearField("schema_url")
            if field.type != FieldDescriptor.TYPE_MESSAGE:
                continue
            if field.message_type is KeyValue.DESCRIPTOR:
                self._clean_attributes(message, value, path, depth)
            elif isinstance(value, Message):
                self.clean(value, path, depth + 1)
            else:
                self.records += len(value) if field.name in ("spans", "data_points", "log_records") else 0
                for one in value:
                    self.clean(one, path, depth + 1)

    def _clean_attributes(self, message: Message, attributes: Any, path: str, depth: int) -> None:
        if len(attributes) > MAX_ATTRIBUTES:
            cut = len(attributes) - MAX_ATTRIBUTES
            del attributes[MAX_ATTRIBUTES:]
            if _DROPPED in message.DESCRIPTOR.fields_by_name:
                setattr(message, _DROPPED, min(getattr(message, _DROPPED) + cut, 2**32 - 1))
        for index in reversed(range(len(attributes))):
            one = attributes[index]
            whole = (path + _squeeze(one.key))[-200:]
            # A key that is an index into a table, which only profiles have, cannot be read here.
            if whole.endswith(_CLAIMS) or getattr(one, "key_strindex", False):
                del attributes[index]
                self.claims += 1
            elif one.value.WhichOneof("value") in ("kvlist_value", "array_value"):
                self.clean(one.value, whole, depth + 1)


def _parse_protobuf(body: bytes, request: Message) -> None:
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise OtlpError(400, "the body is not OTLP in protobuf") from None


def _parse_json(body: bytes, request: Message) -> None:
    """Parse OTLP's JSON: that of protobuf, but with trace and span IDs in hexadecimal digits."""
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError("it is not an object")
        _turn_ids(document)
        json_format.ParseDict(document, request, ignore_unknown_fields=True, max_recursion_depth=MAX_DEPTH + 10)
    except OtlpError:
        raise
    except (json_format.ParseError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        raise OtlpError(400, "the body is not OTLP in JSON") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _turn_ids(document: dict[str, Any]) -> None:
    """Convert hexadecimal IDs to base64, as protobuf's JSON has them. Without recursion."""
    waiting: list[Any] = [document]
    seen = 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value
        seen += len(inner)
        if seen > _MAX_JSON_VALUES:
            raise OtlpError(413, "a request has too many parts; send smaller batches")
        if isinstance(value, dict):
            for name in _ID_FIELDS & value.keys():
                value[name] = _turn_id(value[name])
        waiting += [one for one in inner if isinstance(one, (dict, list))]


def _turn_id(text: object) -> str:
    try:
        return base64.b64encode(bytes.fromhex(text)).decode() if isinstance(text, str) else ""
    except (ValueError, binascii.Error):
        raise OtlpError(400, "trace and span IDs are hexadecimal digits") from None
