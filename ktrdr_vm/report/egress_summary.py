"""Summary of the decisions in the ledger for a report: by destination, by gate, and for each failed task."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from ktrdr_vm.report.ledger_row import find_rule
from ktrdr_vm.report.model import Allowance, Attachment, Denial, GateResult, TaskResult
from ktrdr_vm.report.suggest import render_suggestion

# Decisions are written up to a second late.
_GRACE_S = 1.0
_MOST_NAMED = 5
DENIED_TITLE = "connections denied during this task (observed by the host)"


def sum_up_egress(
    rows: list[dict[str, Any]], gates: tuple[GateResult, ...]
) -> tuple[tuple[Allowance, ...], tuple[Denial, ...]]:
    """The decisions in the ledger by destination: allowed ones, and denied ones with the task that was running."""
    allowed: dict[tuple[str, str, int], dict[str, Any]] = {}
    denied: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for row in rows:
        host, address, port = str(row.get("name", "")), str(row.get("address", "")), int(row.get("port", 0))
        rule, count = find_rule(row), int(row.get("count", 1))
        if row["verdict"] == "note":
            continue  # rows about the guard and grants
        if row["verdict"] == "deny":
            if row["kind"] == "dns":
                port = 53
            # For a decision by name, the guest chose the address, which is not the destination.
            key = (
                host,
                "" if host and row["kind"] in ("tls", "http", "dns") else address,
                port,
                f"{row['kind']}: {rule}",
            )
            entry = denied.setdefault(key, {"count": 0, "first": row.get("first_at", row["time"])})
            entry["count"] += count
            entry["last"] = row["time"]
        elif row["kind"] != "dns":
            entry = allowed.setdefault(
                (host, "" if host else address, port), {"count": 0, "in": 0, "out": 0, "rule": rule}
            )
            entry["count"] += count
            entry["in"] += int(row.get("bytes_in", 0))
            entry["out"] += int(row.get("bytes_out", 0))
    return (
        tuple(
            Allowance(*key, rule=entry["rule"], count=entry["count"], bytes_in=entry["in"], bytes_out=entry["out"])
            for key, entry in sorted(allowed.items())
        ),
        tuple(
            Denial(
                key[0],
                key[1],
                key[2],
                key[3],
                entry["count"],
                entry["first"],
                entry["last"],
                during=find_task(gates, entry["first"]),
            )
            # Names first, because they are more informative than addresses.
            for key, entry in sorted(denied.items(), key=lambda item: (not item[0][0], item[0]))
        ),
    )


def count_traffic(gates: tuple[GateResult, ...], rows: list[dict[str, Any]]) -> tuple[GateResult, ...]:
    """The gates, each with the bytes of connections that ended during it."""

    def count(gate: GateResult) -> GateResult:
        if gate.usage is None:
            return gate
        until = _end(gate.started_at, gate.duration_s + _GRACE_S)
        flows = [row for row in rows if row["verdict"] == "allow" and gate.started_at <= row["time"] <= until]
        inward, outward = (sum(int(row.get(f"bytes_{way}", 0)) for row in flows) for way in ("in", "out"))
        return replace(gate, usage=replace(gate.usage, bytes_in=inward, bytes_out=outward))

    return tuple(count(gate) for gate in gates)


def explain_denials(gates: tuple[GateResult, ...], rows: list[dict[str, Any]]) -> tuple[GateResult, ...]:
    """The gates, with the denied connections during each failed task, and the profile fragment that would allow
    them."""

    def explain(task: TaskResult) -> TaskResult:
        if task.outcome != "failed":
            return task
        until = _end(task.started_at, task.duration_s + _GRACE_S)
        _, denied = sum_up_egress(
            [row for row in rows if row["verdict"] == "deny" and task.started_at <= row["time"] <= until], ()
        )
        if not denied:
            return task
        lines = [f"{one.host or one.address}:{one.port}  {one.count} times  ({one.rule})" for one in denied]
        text = (
            "\n".join(lines)
            + "\n\negress rules that would allow it:\n\n"
            + render_suggestion([asdict(one) for one in denied])
        )
        # A destination that the output names is the cause. Others may be attempts of something that ran at the same
        # time.
        output = f"{task.message}\n{task.stdout}\n{task.stderr}"
        named = list(dict.fromkeys(one.host for one in denied if one.host and one.host in output))[:_MOST_NAMED]
        message = f"{task.message}; the profile does not allow {', '.join(named)}" if named else task.message
        return replace(
            task, message=message.removeprefix("; "), evidence=(Attachment(DENIED_TITLE, text), *task.evidence)
        )

    return tuple(replace(gate, tasks=tuple(explain(task) for task in gate.tasks)) for gate in gates)


def find_task(gates: tuple[GateResult, ...], time: str) -> str:
    """The gate and task at a time. Decisions are written up to a second late, so the first second belongs to the task
    before."""
    running = ""
    for gate in gates:
        if gate.started_at and gate.started_at <= time:
            running = gate.title
            for task in gate.tasks:
                if task.started_at <= time:
                    running = f"{gate.title}: {task.name}"
            if _end(gate.started_at, gate.duration_s + _GRACE_S) < time:
                running = ""
    return running


def _end(started_at: str, duration: float) -> str:
    began = datetime.fromisoformat(started_at)
    return (
        datetime.fromtimestamp(began.timestamp() + duration, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
