"""A run's events as spans and numbers: each in its place, whatever the run met; and nothing of it where nothing is
configured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.evidence import otel_export as tracing
from ktrdr_vm.evidence.otel_export import find_endpoints, make_points, make_spans, report_run
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.collector import Collector

_START = 1_700_000_000


def at(second: float, event: str, **fields: Any) -> dict[str, Any]:
    import datetime

    time = (
        datetime.datetime.fromtimestamp(_START + second, datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
    return {"time": time, "instance_id": "one", "run_id": "r", "event": event, **fields}


EVENTS = [
    at(0, "run_started", profile="p", plan_digest="d"),
    at(1, "phase_started", phase="create"),
    at(3, "resource", kind="overlay", name="/x", verb="changed", duration_s=1.5),
    at(4, "resource", kind="tap", name="kv1", verb="failed", duration_s=99),
    at(5, "phase_finished", phase="create", outcome="ok", duration_s=4),
    at(5, "phase_started", phase="gate unit"),
    at(6, "gate_started", gate="unit"),
    at(6, "task_started", gate="unit", task="t", module="command", where="p.yaml:3"),
    at(7, "task_retried", task="t", attempt=1, of=3),
    at(
        8,
        "task_finished",
        gate="unit",
        task="t",
        outcome="failed",
        changed=False,
        duration_s=2,
        message="the guest's own words",
    ),
    at(9, "gate_finished", gate="unit", outcome="failed", duration_s=3, message="the guest's own words"),
    at(9, "phase_finished", phase="gate unit", outcome="ok", duration_s=4),
    at(9, "phase_started", phase="destroy"),
    at(10, "run_finished", outcome="failed", exit_code=1, residue=["a tap"]),
]


def shape(events: list[dict[str, Any]]) -> list[tuple[str, str, float, float, bool]]:
    """Name, parent's name, begin and end in seconds, whether it went well."""
    spans = make_spans(events)
    return [
        (
            span.name,
            span.parent.name if span.parent else "",
            span.start / 1e9 - _START,
            span.end / 1e9 - _START,
            span.good,
        )
        for span in spans
    ]


def test_every_part_lies_where_it_happened() -> None:
    assert shape(EVENTS) == [
        ("run", "", 0, 10, False),
        ("phase create", "run", 1, 5, True),
        ("resource overlay", "phase create", 1.5, 3, True),
        ("resource tap", "phase create", 1, 4, False),
        ("phase gate unit", "run", 5, 9, True),
        ("gate unit", "phase gate unit", 6, 9, False),
        ("task t", "gate unit", 6, 8, False),
        ("phase destroy", "run", 9, 10, False),
    ]
    spans = {span.name: span for span in make_spans(EVENTS)}
    assert spans["run"].attributes == {
        "ktrdr.profile": "p", "ktrdr.plan_digest": "d", "ktrdr.outcome": "failed", "ktrdr.exit_code": 1,
    }  # fmt: skip
    assert [name for name, _, _ in spans["task t"].events] == ["task_retried"]
    assert "own words" not in str(spans)


@pytest.mark.parametrize(
    ("outcome", "good"),
    [("passed", True), ("escalated", True), ("failed", False), ("error", False), ("interrupted", False)],
)
def test_a_run_is_an_error_unless_it_passed_or_stopped(outcome: str, good: bool) -> None:
    assert make_spans([*EVENTS[:-1], at(20, "run_finished", outcome=outcome)])[0].good is good


def test_so_many_spans_are_made() -> None:
    task = {"gate": "unit", "task": "t", "outcome": "passed"}
    many = [at(7, f"task_{step}", **task) for _ in range(tracing.MAX_SPANS) for step in ("started", "finished")]
    spans = make_spans([*EVENTS[:7], *many, *EVENTS[-3:]])
    assert len(spans) == tracing.MAX_SPANS and spans[0].end / 1e9 - _START == 10


def test_a_run_that_was_taken_up_again_is_told_from_there() -> None:
    assert shape([*EVENTS[:-1], at(20, "run_continued"), at(21, "run_finished", outcome="passed")]) == [
        ("run", "", 20, 21, True)
    ]


def test_numbers_of_a_run() -> None:
    ledger: list[dict[str, Any]] = [
        {"time": "t", "kind": "tls", "verdict": "allow"},
        {"time": "t", "kind": "drop", "verdict": "deny", "count": 4},
        {"time": "t", "kind": "drop", "verdict": "deny"},
        {"time": "t", "kind": "guard", "verdict": "note"},
    ]
    found = {(one.name, *sorted(one.attributes.values())): one.value for one in make_points(EVENTS, ledger)}
    assert found == {
        ("ktrdr.phase.duration", "create", "ok"): 4, ("ktrdr.phase.duration", "gate unit", "ok"): 4,
        ("ktrdr.gate.duration", "failed", "unit"): 3, ("ktrdr.run.duration", "failed"): 10, ("ktrdr.run.residue",): 1,
        ("ktrdr.tasks", "failed", "unit"): 1, ("ktrdr.resources", "changed", "overlay"): 1, ("ktrdr.resources", "failed", "tap"): 1,
        ("ktrdr.egress.decisions", "allow", "tls"): 1, ("ktrdr.egress.decisions", "deny", "drop"): 5,
    }  # fmt: skip


NAMES = st.sampled_from(
    [
        "run_started",
        "phase_started",
        "phase_finished",
        "gate_started",
        "gate_finished",
        "task_started",
        "task_finished",
        "x",
    ]
)


@given(st.lists(st.tuples(NAMES, st.sampled_from("ab"), st.integers(0, 50)), max_size=30))
def test_events_in_any_order_make_spans_that_lie_in_one_another(drawn: list[tuple[str, str, int]]) -> None:
    """A run can be killed anywhere, and its file can end in the middle."""
    events = [
        at(second, name, phase=of, gate=of, task=of) for name, of, second in sorted(drawn, key=lambda one: one[2])
    ]
    spans = make_spans(events)
    assert all(span.start <= span.end for span in spans)
    for span in spans[1:]:
        assert span.parent is not None and span.parent.start <= span.start and span.end <= span.parent.end


def test_without_an_endpoint_nothing_is_imported_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_export", lambda *_: pytest.fail("nothing is configured"))
    said: list[str] = []
    report_run(tmp_path, {}, {}, OwnerPolicy(), said.append)
    assert said == []
    source = Path(tracing.__file__).read_text().split("def _export(")[0]
    assert "import opentelemetry" not in source and "from opentelemetry" not in source
    assert sys.modules["ktrdr_vm.evidence.otel_export"] is tracing


POLICY = OwnerPolicy(collector=Collector("http", "127.0.0.1", 4318, address="127.0.0.1"), reports_runs=True)


@pytest.mark.parametrize(
    ("environment", "policy", "signals"),
    [
        ({}, OwnerPolicy(), []),
        ({}, OwnerPolicy(collector=POLICY.collector), []),
        ({}, POLICY, ["traces", "metrics"]),
        ({"OTEL_SDK_DISABLED": "true"}, POLICY, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, OwnerPolicy(), ["traces", "metrics"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, OwnerPolicy(), ["traces"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_METRICS_EXPORTER": "none"}, OwnerPolicy(), ["traces"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, OwnerPolicy(), []),
    ],
)
def test_what_is_configured(environment: dict[str, str], policy: OwnerPolicy, signals: list[str]) -> None:
    found = find_endpoints(environment, policy)
    assert list(found) == signals
    if policy is POLICY and signals:
        assert found["traces"]["endpoint"] == "http://127.0.0.1:4318/v1/traces"


def test_the_address_of_the_collector_is_for_instances_only() -> None:
    named = Collector("https", "otlp.example.com", 443, path="/in", address="192.0.2.7", ca_file="/ca.pem")
    found = find_endpoints({}, OwnerPolicy(collector=named, reports_runs=True))
    assert found["metrics"] == {
        "endpoint": "https://otlp.example.com:443/in/v1/metrics",
        "headers": {},
        "certificate_file": "/ca.pem",
    }
    # The owner's headers are not for an endpoint that the caller names.
    caller = find_endpoints(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, OwnerPolicy(collector=named, reports_runs=True)
    )
    assert caller == {"traces": {}, "metrics": {}}


def test_whatever_goes_wrong_is_a_note_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"half')

    def fail(*_: object) -> list[str]:
        raise RuntimeError("of a library")

    monkeypatch.setattr(tracing, "_export", fail)
    said: list[str] = []
    report_run(tmp_path, {}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, OwnerPolicy(), said.append)
    assert said == ["the telemetry of this run is incomplete: RuntimeError: of a library"]
    unreadable = OwnerPolicy(
        collector=Collector("http", "127.0.0.1", 4318, headers_file=str(tmp_path / "none")), reports_runs=True
    )
    report_run(tmp_path, {}, {}, unreadable, said.append)
    assert "headers cannot be read" in said[1]
