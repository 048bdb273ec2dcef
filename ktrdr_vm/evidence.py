"""The run directory: events as they happen, the ledger's rows, files that belong to the person who asked for the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.suggest import render_suggestion
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.runs import hand_over, require_own
from ktrdr_vm.report.model import Allowance, Artifact, Denial, GateResult, TaskResult

# A console that a guest floods is kept to its end.
MAX_CONSOLE = 8 * 1024 * 1024
# Decisions are written up to a second late.
_GRACE_S = 1.0
DENIED_TITLE = "refused by the network meanwhile (seen by the host)"


def make_run_id() -> str:
    """Sortable by time, and never twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class RunDirectory:
    """`runs/<instance_id>/<run_id>/`, open for writing while the run lasts."""

    def __init__(self, path: Path, instance_id: str, owner: tuple[int, int], mask: Callable[[str], str]) -> None:
        self.path = path
        self._instance_id = instance_id
        self._owner = owner
        self._mask = mask
        # Made by `create_run`, and this user's own until `close`: until then every path in it is what this program made.
        for folder in (path, path / "artifacts", path / "bundle"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(path)
        self._closed = False
        self._events = (path / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
        self._link_latest()

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        line = json.dumps(
            {"time": now(), "instance_id": self._instance_id, "run_id": self.path.name, "event": event, **fields}, default=str
        )
        # A full disk must not end what is going on: the report, written last, says that it was full.
        with contextlib.suppress(OSError, ValueError):
            self._events.write(self._mask(line) + "\n")
            self._events.flush()

    def relay(self, fields: Mapping[str, Any]) -> None:
        """A gate's event, which brings its own name."""
        rest = {key: value for key, value in fields.items() if key != "event"}
        self.event(str(fields.get("event", "gate")), **rest)

    def write(self, name: str, text: str) -> None:
        if self._closed:  # the person's by now
            return
        (self.path / name).write_text(self._mask(text), encoding="utf-8", errors="backslashreplace")

    def keep_ledger(self, ledger: Path, *, since: str, add: bool) -> list[dict[str, Any]]:
        """The ledger's lines of this run, written to egress.jsonl, or added to it, and returned."""
        rows: list[dict[str, Any]] = []
        if self._closed:
            return rows
        with (self.path / "egress.jsonl").open("a" if add else "w", encoding="utf-8") as kept:
            for path in (ledger.with_name(ledger.name + ".1"), ledger):
                if not path.exists():
                    continue
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    row = _parse_row(line)
                    if row is not None and row["time"] >= since:
                        kept.write(self._mask(line) + "\n")
                        rows.append(row)
        return rows

    def keep_console(self, console: Path, name: str = "console.log") -> None:
        """The end of the console's log, with secrets masked."""
        if not console.exists():
            return
        with console.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_CONSOLE))
            self.write(name, file.read().decode("utf-8", "replace"))

    def close(self) -> None:
        """Hand everything to the person. After that nothing of it is opened by its path again."""
        with contextlib.suppress(OSError):
            self._events.close()
        if not self._closed:
            hand_over(self.path, self._owner)
        self._closed = True

    def _link_latest(self) -> None:
        link = self.path.parent / ".latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path.name)
        link.rename(self.path.parent / "latest")


def _parse_row(line: str) -> dict[str, Any] | None:
    """A line of the ledger; None for half of one, which a guard that was killed leaves."""
    try:
        row = json.loads(line)
        return row if {"time", "kind", "verdict"} <= row.keys() else None
    except (ValueError, AttributeError):
        return None


def list_fetched(folder: Path, gate: str, directory: Path) -> tuple[Artifact, ...]:
    """What the tasks of a gate brought into its `folder` of the run's `directory`, with sizes and digests."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        source = str(path.relative_to(folder))
        found.append(Artifact(str(path.relative_to(directory)), source, path.stat().st_size, digest, gate=gate))
    return tuple(found)


def sum_up_egress(rows: list[dict[str, Any]], gates: tuple[GateResult, ...]) -> tuple[tuple[Allowance, ...], tuple[Denial, ...]]:
    """The ledger's decisions by destination: what was reached, and what was refused while which task ran."""
    allowed: dict[tuple[str, str, int], dict[str, Any]] = {}
    denied: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for row in rows:
        host, address, port = str(row.get("name", "")), str(row.get("address", "")), int(row.get("port", 0))
        rule, count = str(row.get("rule", "")), int(row.get("count", 1))
        if row["verdict"] == "note":
            continue  # the guard's own words, and those on grants
        if row["verdict"] == "deny":
            if row["kind"] == "dns":
                port = 53
            # By name the address is whatever the guest chose; it says nothing about the destination.
            key = (host, "" if host and row["kind"] in ("tls", "http", "dns") else address, port, f"{row['kind']}: {rule}")
            entry = denied.setdefault(key, {"count": 0, "first": row["time"]})
            entry["count"] += count
            entry["last"] = row["time"]
        elif row["kind"] != "dns":
            entry = allowed.setdefault((host, "" if host else address, port), {"count": 0, "in": 0, "out": 0, "rule": rule})
            entry["count"] += count
            entry["in"] += int(row.get("bytes_in", 0))
            entry["out"] += int(row.get("bytes_out", 0))
    return (
        tuple(
            Allowance(*key, rule=entry["rule"], count=entry["count"], bytes_in=entry["in"], bytes_out=entry["out"])
            for key, entry in sorted(allowed.items())
        ),
        tuple(
            Denial(key[0], key[1], key[2], key[3], entry["count"], entry["first"], entry["last"], during=find_task(gates, entry["first"]))
            # Names say more than addresses, so they come first.
            for key, entry in sorted(denied.items(), key=lambda item: (not item[0][0], item[0]))
        ),
    )


def count_traffic(gates: tuple[GateResult, ...], rows: list[dict[str, Any]]) -> tuple[GateResult, ...]:
    """The gates, each with the bytes of the flows that ended in its time."""

    def count(gate: GateResult) -> GateResult:
        if gate.usage is None:
            return gate
        until = _end(gate.started_at, gate.duration_s + _GRACE_S)
        flows = [row for row in rows if row["verdict"] == "allow" and gate.started_at <= row["time"] <= until]
        inward, outward = (sum(int(row.get(f"bytes_{way}", 0)) for row in flows) for way in ("in", "out"))
        return replace(gate, usage=replace(gate.usage, bytes_in=inward, bytes_out=outward))

    return tuple(count(gate) for gate in gates)


def explain_denials(gates: tuple[GateResult, ...], rows: list[dict[str, Any]]) -> tuple[GateResult, ...]:
    """The gates, and beside each failed task what the network refused in its time, with the fragment that would have allowed it."""

    def explain(task: TaskResult) -> TaskResult:
        if task.outcome != "failed":
            return task
        until = _end(task.started_at, task.duration_s + _GRACE_S)
        _, denied = sum_up_egress([row for row in rows if row["verdict"] == "deny" and task.started_at <= row["time"] <= until], ())
        if not denied:
            return task
        lines = [f"{one.host or one.address}:{one.port}  {one.count} times  ({one.rule})" for one in denied]
        text = "\n".join(lines) + "\n\nwhat would allow it:\n\n" + render_suggestion([asdict(one) for one in denied])
        return replace(task, evidence=((DENIED_TITLE, text), *task.evidence))

    return tuple(replace(gate, tasks=tuple(explain(task) for task in gate.tasks)) for gate in gates)


def find_task(gates: tuple[GateResult, ...], time: str) -> str:
    """Which gate and task ran at a time. Decisions are written up to a second late, so a second of grace belongs to the task before."""
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
    return datetime.fromtimestamp(began.timestamp() + duration, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
