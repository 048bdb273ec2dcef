"""The run directory: events as they happen, the ledger's rows, files that belong to the person who asked for the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.ledger import read_kept
from ktrdr_vm.egress.suggest import render_suggestion
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.journal import is_locked, list_directories
from ktrdr_vm.host.paths import Home
from ktrdr_vm.report.mask import mask_values
from ktrdr_vm.report.model import Allowance, Artifact, Denial, GateResult, TaskResult

# Evidence that is older is collected.
KEPT_DAYS = 90
_OLD = f"the run ended more than {KEPT_DAYS} days ago"
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
        for folder in (path, path / "artifacts", path / "bundle"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The person may pass through to what is theirs, and see nothing else on the way.
        path.parent.chmod(0o711)
        path.parent.parent.chmod(0o711)
        self._events = (path / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
        self._link_latest()

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        said = mask_values(json.loads(json.dumps(fields, default=str)), self._mask)
        line = json.dumps({"time": now(), "instance_id": self._instance_id, "run_id": self.path.name, "event": event, **said})
        # A full disk must not end what is going on: the report, written last, says that it was full.
        with contextlib.suppress(OSError, ValueError):
            self._events.write(line + "\n")
            self._events.flush()

    def relay(self, fields: Mapping[str, Any]) -> None:
        """A gate's event, which brings its own name."""
        rest = {key: value for key, value in fields.items() if key != "event"}
        self.event(str(fields.get("event", "gate")), **rest)

    def write(self, name: str, text: str) -> None:
        """`text` as it is: what may hold a secret is masked before it becomes a document."""
        (self.path / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def keep_ledger(self, ledger: Path, *, since: str, add: bool) -> list[dict[str, Any]]:
        """The ledger's lines of this run, written to egress.jsonl, or added to it, and returned. Totals are of lines that are gone."""
        rows = [row for row in read_kept(ledger) if row["time"] >= since]
        with (self.path / "egress.jsonl").open("a" if add else "w", encoding="utf-8") as kept:
            for row in rows:
                kept.write(json.dumps(mask_values(row, self._mask)) + "\n")
        return rows

    def keep_console(self, console: Path, name: str = "console.log") -> None:
        """The end of the console's log, with secrets masked."""
        if not console.exists():
            return
        with console.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_CONSOLE))
            self.write(name, self._mask(file.read().decode("utf-8", "replace")))

    def close(self) -> None:
        """Hand everything to the person. Files that the guest named are already theirs.

        From the inside out and without following a link: nobody else can come in before the outermost folder is theirs.
        """
        with contextlib.suppress(OSError):
            self._events.close()
        for _, _, files, descriptor in os.fwalk(self.path, topdown=False, follow_symlinks=False):
            for name in files:
                os.chown(name, *self._owner, dir_fd=descriptor, follow_symlinks=False)
            os.fchown(descriptor, *self._owner)

    def _link_latest(self) -> None:
        link = self.path.parent / ".latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path.name)
        link.rename(self.path.parent / "latest")


def collect_runs(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the evidence of runs that ended KEPT_DAYS ago; of an instance that is there the newest stays. Rows as `gc` shows them."""
    living = {path.name for path in list_directories(home)}
    rows = []
    for folder in sorted(home.runs.iterdir()) if home.runs.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or is_locked(home.lock(folder.name)):
            continue
        found = sorted(
            (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()), key=lambda path: path.stat().st_mtime
        )
        old = [path for path in found if time.time() - path.stat().st_mtime > KEPT_DAYS * 86400]
        if folder.name in living:
            old = [path for path in old if path != found[-1]]
        for path in old:
            rows.append({"action": "would remove" if dry_run else "removed", "instance_id": f"{folder.name}/{path.name}", "reason": _OLD})
            if not dry_run:
                shutil.rmtree(path)
        if not dry_run and len(old) == len(found):
            (folder / "latest").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not ours, then, what else is in it
                folder.rmdir()
    return rows


def remove_old_runs(runs: Path, keep: int) -> list[Path]:
    """Keep the newest `keep` runs of an instance_id, and as many of what `gate` fetched; returns what was removed."""
    if not runs.is_dir():
        return []
    found = sorted((path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()), reverse=True)
    gates = [path for path in found if path.name.startswith("gates-")]
    old = [path for path in found if path not in gates][keep:] + gates[keep:]
    for path in old:
        shutil.rmtree(path)
    return old


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
            entry = denied.setdefault(key, {"count": 0, "first": row.get("first_at", row["time"])})
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
