"""The program's own telemetry: a run's events arrive as spans and numbers, and a collector that is not well costs
seconds at most."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from laboratory.collector import ADDRESS, PORT, LabCollector
from laboratory.lab import Lab

from ktrdr_vm.evidence.otel_export import FLUSH_LIMIT, report_run
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.collector import Collector

IDENTITY = {
    "service.namespace": "one",
    "ktrdr.instance_id": "one",
    "ktrdr.environment": "sandbox",
    "ktrdr.run_id": "r-1",
}
EVENTS: list[dict[str, Any]] = [
    {"event": "run_started", "profile": "p"},
    {"event": "phase_started", "phase": "gate unit"},
    {"event": "gate_started", "gate": "unit"},
    {"event": "task_started", "task": "t", "gate": "unit", "module": "command"},
    {
        "event": "task_finished",
        "task": "t",
        "gate": "unit",
        "outcome": "failed",
        "message": "what-the-guest-said",
        "duration_s": 1,
    },
    {"event": "gate_finished", "gate": "unit", "outcome": "failed", "duration_s": 1},
    {"event": "phase_finished", "phase": "gate unit", "outcome": "ok", "duration_s": 1},
    {"event": "run_finished", "outcome": "failed", "exit_code": 1, "residue": []},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [{"time": f"2026-01-01T00:00:{second:02}.000Z", **event} for second, event in enumerate(EVENTS)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "egress.jsonl").write_text(
        '{"time": "2026-01-01T00:00:01.000Z", "instance_id": "one", "kind": "tls", "verdict": "allow",'
        ' "name": "a.example", "address": "198.51.100.10", "port": 443, "rule": "name"}\n'
    )
    return tmp_path


def test_a_run_arrives_with_its_identity_by_the_owners_policy(
    lab: Lab, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "ktrdr.instance_id=another,team=core")
    headers = lab.scratch / "run-headers"
    headers.write_text("Authorization: Bearer owner\n")
    headers.chmod(0o600)
    policy = OwnerPolicy(collector=Collector("http", ADDRESS, PORT, headers_file=str(headers)), reports_runs=True)
    said: list[str] = []
    with LabCollector() as collector:
        report_run(run, IDENTITY, {}, policy, said.append)
        assert said == [] and [one.path for one in collector.received] == ["/v1/traces", "/v1/metrics"]
        for one in collector.received:
            [resource] = one.resources
            assert {name: resource[name] for name in IDENTITY} == {name: [value] for name, value in IDENTITY.items()}
            assert resource["service.name"] == ["ktrdr-vm"] and resource["team"] == ["core"]
            assert (
                one.headers["Authorization"] == "Bearer owner"
                and b"what-the-guest-said" not in one.message.SerializeToString()
            )
        spans = {span.name: span for span in collector.received[0].message.resource_spans[0].scope_spans[0].spans}
        assert list(spans) == ["run", "phase gate unit", "gate unit", "task t"]
        assert len({span.trace_id for span in spans.values()}) == 1
        assert spans["task t"].parent_span_id == spans["gate unit"].span_id and spans["run"].parent_span_id == b""
        assert (spans["gate unit"].status.code, spans["phase gate unit"].status.code) == (2, 0)
        assert spans["task t"].end_time_unix_nano - spans["task t"].start_time_unix_nano == 10**9
        metrics = {metric.name for metric in collector.received[1].message.resource_metrics[0].scope_metrics[0].metrics}
        assert {"ktrdr.run.duration", "ktrdr.gate.duration", "ktrdr.tasks", "ktrdr.egress.decisions"} <= metrics


@pytest.mark.parametrize("mood", ["hangs", "unavailable", "refuses", "dead"])
def test_a_collector_that_is_not_well_costs_seconds_and_is_said(
    lab: Lab, run: Path, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{ADDRESS}:{PORT}")
    said: list[str] = []
    with LabCollector() as collector:
        if mood == "dead":
            collector.__exit__()
        else:
            collector.mood = mood  # type: ignore[assignment]
        began = time.monotonic()
        report_run(run, IDENTITY, {"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, OwnerPolicy(), said.append)
        # Its limit, and what a busy machine adds.
        assert time.monotonic() - began < FLUSH_LIMIT + 5
    [line] = said
    assert line.startswith("the telemetry of this run is incomplete: the collector did not")
