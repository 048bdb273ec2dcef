"""Prometheus metrics of the instances and runs of this host, collected on request. Each series has its instance_id."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.evidence.reader import read_report
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import FinishedRun, list_newest
from ktrdr_vm.instance.inventory import Found, find_instances
from ktrdr_vm.monitoring.disk import measure_disk
from ktrdr_vm.report.escape import escape_line
from ktrdr_vm.report.ledger_row import parse_row

# The end of a ledger suffices for a rate; both files can have 8 MiB each.
_LEDGER_TAIL = 16 * 1024 * 1024
# Series of one run.
_MOST_GATES = 200
_IDENTITY = ["instance_id", "environment"]


class Metrics:
    """Every metric by its name, help and labels. `environment` is sandbox or interactive."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.up = self._gauge("instance_up", "1 while the instance's domain runs", *_IDENTITY)
        self.age = self._gauge(
            "instance_created_timestamp_seconds", "Time at which the instance was created", *_IDENTITY
        )
        self.guard = self._gauge(
            "guard_up", "1 while the guard of the instance runs; without it no connection can be opened", *_IDENTITY
        )
        self.disk = self._gauge(
            "instance_disk_bytes", "Bytes that the instance uses on the disk of the host", *_IDENTITY
        )
        self.egress = self._gauge("egress_decisions", "Egress decisions in the ledger", *_IDENTITY, "verdict")
        self.egress_bytes = self._gauge(
            "egress_bytes", "Bytes of the ended connections in the ledger", *_IDENTITY, "direction"
        )
        self.telemetry = self._gauge(
            "telemetry_records",
            "Telemetry records of the workload in the ledger, by their result",
            *_IDENTITY,
            "fate",
        )
        self.escalations = self._gauge("escalations", "Escalations by state", *_IDENTITY, "state")
        self.run_outcome = self._gauge("run_outcome", "1 for the outcome of the newest run", *_IDENTITY, "outcome")
        self.run_seconds = self._gauge("run_duration_seconds", "Duration of the newest run", *_IDENTITY)
        self.run_finished = self._gauge(
            "run_started_timestamp_seconds", "Time at which the newest run started", *_IDENTITY
        )
        self.gate_passed = self._gauge("gate_passed", "1 if the gate passed in the newest run", *_IDENTITY, "gate")
        self.gate_seconds = self._gauge(
            "gate_duration_seconds", "Duration of the gate in the newest run", *_IDENTITY, "gate"
        )
        self.residue = self._gauge("run_residue", "Resources that the newest run left", *_IDENTITY)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ktrdr_vm_{name}", text, labels, registry=self.registry)


def render_metrics(home: Home, libvirt: Libvirt) -> str:
    """The text format of Prometheus, for a scrape or a node-exporter textfile."""
    metrics = Metrics()
    for found in find_instances(home, libvirt):
        _add_instance(metrics, home, found)
    for run in list_newest(home):
        _add_run(metrics, run)
    return generate_latest(metrics.registry).decode()


def _add_instance(metrics: Metrics, home: Home, found: Found) -> None:
    identity, paths = (found.instance_id, found.mode), home.instance(found.instance_id)
    metrics.up.labels(*identity).set(found.state == "running")
    if found.created_at:
        metrics.age.labels(*identity).set(datetime.fromisoformat(found.created_at).timestamp())
    metrics.guard.labels(*identity).set(is_locked(paths.guard / "guard.lock"))
    metrics.disk.labels(*identity).set(measure_disk(paths))
    for state in ("pending", "approved", "denied", "revoked", "expired"):
        metrics.escalations.labels(*identity, state).set(0)
    for one in EscalationStore(paths.escalations, found.instance_id).list():
        metrics.escalations.labels(*identity, one.current).inc()
    for row in _read_ledger(paths.ledger):
        if row.get("verdict") in ("allow", "deny"):
            metrics.egress.labels(*identity, row["verdict"]).inc(row.get("count", 1))
        if row.get("kind") == "telemetry":
            for fate in ("accepted", "sent", "dropped"):
                metrics.telemetry.labels(*identity, fate).inc(row.get(fate, 0))
        for direction in ("in", "out"):
            metrics.egress_bytes.labels(*identity, direction).inc(row.get(f"bytes_{direction}", 0))


def _add_run(metrics: Metrics, run: FinishedRun) -> None:
    try:
        report = read_report(run.path)
        finished = datetime.fromisoformat(report.started_at).timestamp()
    except (OSError, ValueError, OverflowError, KtrdrError):
        return  # incomplete, or of another version
    identity = report.instance_id, report.mode
    metrics.run_outcome.labels(*identity, report.outcome).set(1)
    metrics.run_seconds.labels(*identity).set(report.duration_s)
    metrics.run_finished.labels(*identity).set(finished)
    metrics.residue.labels(*identity).set(len(report.residue))
    for gate in report.gates[:_MOST_GATES]:
        # Its owner may have changed the report: no text in it must end the scrape of all others.
        name = escape_line(gate.name, limit=100)
        metrics.gate_passed.labels(*identity, name).set(gate.outcome == "passed")
        metrics.gate_seconds.labels(*identity, name).set(gate.duration_s)


def _read_ledger(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LEDGER_TAIL))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [row for row in map(parse_row, lines) if row is not None]
