"""A run as OpenTelemetry traces and metrics, made from its events at its end, and sent if an endpoint is configured.

The events are the only source, so the run itself does not depend on it. It contains no output and no messages, because
they may come from the guest. A collector that does not answer delays the end by some seconds and changes no outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.evidence.reader import read_network
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.policy.load import read_collector_headers
from ktrdr_vm.policy.owner_policy import OwnerPolicy

# Seconds for everything, including imports, and for one request, so that time is left for the second signal.
FLUSH_LIMIT = 5.0
_REQUEST_LIMIT = 2.0
# Limit for a run with many tasks.
MAX_SPANS = 5000
# The exported fields of an event. The others are from the guest, or long.
_TOLD = (
    "outcome",
    "exit_code",
    "profile",
    "plan_digest",
    "kind",
    "name",
    "verb",
    "gate",
    "task",
    "module",
    "where",
    "changed",
    "attempt",
    "of",
    "part",
    "how",
    "state",
)
_GOOD = (None, "ok", "passed", "changed", "skipped", "removed", "absent", "ignored", "escalated")


@dataclass
class Span:
    """A span of a run. Times are nanoseconds since the epoch; `parent` is the enclosing span."""

    name: str
    start: int
    parent: Span | None = None
    end: int = 0
    good: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """A number of the run, with its attributes."""

    name: str
    unit: str
    value: float
    attributes: dict[str, str]


def find_endpoints(environment: Mapping[str, str], policy: OwnerPolicy) -> dict[str, dict[str, Any]]:
    """The configured signals, `traces` and `metrics`, and the arguments of their exporters; none if the environment
    configures them.

    The environment's standard variables win over the owner's policy.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    found: dict[str, dict[str, Any]] = {}
    collector = policy.collector if policy.reports_runs else None
    for signal in ("traces", "metrics"):
        if environment.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") != "otlp":
            continue
        if environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or environment.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        ):
            found[signal] = {}
        elif collector is not None:
            found[signal] = {
                "endpoint": f"{collector.url}/v1/{signal}",
                "headers": read_collector_headers(collector),
                **({"certificate_file": collector.ca_file} if collector.ca_file else {}),
            }
    return found


def report_run(
    run: Path,
    identity: Mapping[str, str],
    environment: Mapping[str, str],
    policy: OwnerPolicy,
    note: Callable[[str], None],
) -> None:
    """Send the run in this folder, if an endpoint is configured. Never raises, and returns within FLUSH_LIMIT.

    `identity` is added to everything: instance_id, environment and run_id.
    """
    failures: list[str] = []

    def send() -> None:
        try:
            failures.extend(_export(run, identity, endpoints))
        except Exception as error:  # an error of a library must not change the outcome of the run
            failures.append(f"{type(error).__name__}: {error}")

    try:
        endpoints = find_endpoints(environment, policy)
        if not endpoints:
            return
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(FLUSH_LIMIT)
        if sending.is_alive():
            failures.append(f"the collector did not answer within {FLUSH_LIMIT:g} s")
    except KtrdrError as error:
        failures.append(str(error))
    except KeyboardInterrupt:
        return
    if failures:
        note(f"the telemetry of this run is incomplete: {failures[0][:300]}")


# -- from events ----------------------------------------------------------------------------------------------------


def make_spans(events: list[dict[str, Any]]) -> list[Span]:
    """The run as spans: the run, its phases, in them resources and gates, in those tasks. Open spans end with the run.

    Of a run that stopped at an escalation, only the part since it continued, because the earlier part was exported.
    """
    starts = [number for number, event in enumerate(events) if event.get("event") in ("run_started", "run_continued")]
    events = events[starts[-1] :] if starts else events
    if not events:
        return []
    whole = Span("run", _parse_time(events[0]))
    made, open_ = [whole], [whole]
    for event in events:
        kind, now = str(event.get("event", "")), _parse_time(event)
        told = {f"ktrdr.{key}": value for key in _TOLD if isinstance(value := event.get(key), (str, int, float, bool))}
        subject, _, step = kind.rpartition("_")
        if kind in ("run_started", "run_continued", "run_finished"):
            whole.attributes |= told
            whole.good = event.get("outcome") in _GOOD
        elif subject in ("phase", "gate", "task") and step == "started":
            if len(made) < MAX_SPANS:
                span = Span(f"{subject} {event.get(subject, '')}", now, open_[-1], attributes=told)
                made.append(span)
                open_.append(span)
        elif subject in ("phase", "gate", "task") and step == "finished":
            _close(open_, f"{subject} {event.get(subject, '')}", now, event.get("outcome"), told)
        elif kind == "resource":
            if len(made) < MAX_SPANS:
                began = max(now - int(float(event.get("duration_s", 0)) * 1e9), open_[-1].start)
                span = Span(
                    f"resource {event.get('kind', '')}", began, open_[-1], now, event.get("verb") != "failed", told
                )
                made.append(span)
        else:
            open_[-1].events.append((kind, now, told))
    end = max(_parse_time(event) for event in events)
    for span in open_:
        span.end = end
        span.good = span.good and span is whole
    return made


def _close(open_: list[Span], name: str, now: int, outcome: object, told: dict[str, Any]) -> None:
    """End the span, and all open spans in it."""
    names = [span.name for span in open_[1:]]
    if name not in names:
        return
    while True:
        span = open_.pop()
        span.end = now
        span.good = span.name == name and outcome in _GOOD
        if span.name == name:
            span.attributes |= told
            return


def make_points(events: list[dict[str, Any]], ledger: list[dict[str, Any]]) -> list[Point]:
    """The run in numbers: seconds of it, of its phases and gates; numbers of tasks and resources; egress decisions."""
    seconds: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(table: dict[Any, float], name: str, amount: float, **attributes: object) -> None:
        key = (name, tuple(sorted((f"ktrdr.{key}", str(value)) for key, value in attributes.items())))
        table[key] = table.get(key, 0) + amount

    for event in events:
        kind, took = event.get("event"), float(event.get("duration_s") or 0)
        if kind == "phase_finished":
            add(seconds, "ktrdr.phase.duration", took, phase=event.get("phase"), outcome=event.get("outcome"))
        elif kind == "gate_finished":
            add(seconds, "ktrdr.gate.duration", took, gate=event.get("gate"), outcome=event.get("outcome"))
        elif kind == "task_finished":
            add(counts, "ktrdr.tasks", 1, gate=event.get("gate"), outcome=event.get("outcome"))
        elif kind == "resource":
            add(counts, "ktrdr.resources", 1, kind=event.get("kind"), verb=event.get("verb"))
        elif kind == "run_finished":
            took = (_parse_time(event) - _parse_time(events[0])) / 1e9
            add(seconds, "ktrdr.run.duration", took, outcome=event.get("outcome"))
            add(counts, "ktrdr.run.residue", len(event.get("residue") or ()))
    for row in ledger:
        if row.get("verdict") in ("allow", "deny"):
            add(
                counts, "ktrdr.egress.decisions", int(row.get("count", 1)), kind=row.get("kind"), verdict=row["verdict"]
            )
    return [
        Point(name, unit, value, dict(attributes))
        for table, unit in ((seconds, "s"), (counts, "1"))
        for (name, attributes), value in table.items()
    ]


def _parse_time(event: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(str(event["time"])).timestamp() * 1e9)


# -- sending --------------------------------------------------------------------------------------------------------


def _export(run: Path, identity: Mapping[str, str], endpoints: Mapping[str, dict[str, Any]]) -> list[str]:
    """Send both signals; return the failures."""
    import logging

    from opentelemetry.sdk.resources import Resource

    # Its warnings would appear in the output of the run.
    logging.getLogger("opentelemetry").propagate = False
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    resource = Resource.create(
        {"service.name": "ktrdr-vm", "service.version": metadata.version("ktrdr-vm"), **identity}
    )
    events = list(FinishedRun(run).rows("events.jsonl"))
    failures = []
    if "traces" in endpoints and not _export_spans(make_spans(events), resource, endpoints["traces"]):
        failures.append("the collector did not accept the traces")
    if "metrics" in endpoints:
        points = make_points(events, list(read_network(run)))
        if not _export_points(points, resource, endpoints["metrics"]):
            failures.append("the collector did not accept the metrics")
    return failures


def _export_spans(spans: list[Span], resource: Any, settings: dict[str, Any]) -> bool:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    tracer = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False).get_tracer("ktrdr-vm")
    made: dict[int, Any] = {}
    for span in spans:
        # An empty context: a run is a separate trace, independent of its caller.
        context = (
            trace.set_span_in_context(made[id(span.parent)])
            if span.parent
            else trace.set_span_in_context(trace.INVALID_SPAN)
        )
        one = made[id(span)] = tracer.start_span(span.name, context, attributes=span.attributes, start_time=span.start)
        for name, time, attributes in span.events:
            one.add_event(name, attributes, time)
        if not span.good:
            one.set_status(trace.StatusCode.ERROR)
    for span in spans:
        made[id(span)].end(span.end)
    exporter = OTLPSpanExporter(**{"timeout": _REQUEST_LIMIT, **settings})
    finished: list[ReadableSpan] = list(made.values())
    return exporter.export(finished) == SpanExportResult.SUCCESS


def _export_points(points: list[Point], resource: Any, settings: dict[str, Any]) -> bool:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult

    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], resource=resource, shutdown_on_exit=False).get_meter("ktrdr-vm")
    gauges = {name: meter.create_gauge(name, unit) for name, unit in {(one.name, one.unit) for one in points}}
    for one in points:
        gauges[one.name].set(one.value, one.attributes)
    collected = reader.get_metrics_data()
    if collected is None:
        return True
    exporter = OTLPMetricExporter(**{"timeout": _REQUEST_LIMIT, **settings})
    return exporter.export(collected) == MetricExportResult.SUCCESS
