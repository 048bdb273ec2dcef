"""The columns of `list` for each instance: age, gates, memory, disk, denials, pending escalations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.evidence.reader import read_report
from ktrdr_vm.host.clock import seconds_since
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import find_run
from ktrdr_vm.instance.inventory import Found, find_instances
from ktrdr_vm.monitoring.disk import measure_disk
from ktrdr_vm.report.ledger_row import parse_row

# From the end of a ledger; older denials are in its earlier file and in the report.
_TAIL = 1024 * 1024


@dataclass(frozen=True)
class Row:
    """One instance. Ages are seconds, sizes bytes, `cpu_s` is the CPU time since its start in seconds; None if
    unknown."""

    found: Found
    age: float | None
    gates: str
    cpu_s: float | None
    memory: int | None
    disk: int
    denials: int
    pending: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.found.to_json(),
            "age_s": self.age,
            "gates": self.gates,
            "cpu_s": self.cpu_s,
            "memory": self.memory,
            "disk": self.disk,
            "denials": self.denials,
            "pending_escalations": list(self.pending),
        }


def list_rows(home: Home, libvirt: Libvirt) -> list[Row]:
    """All instances of this state directory, sorted by instance_id."""
    return [_make_row(home, libvirt, found) for found in find_instances(home, libvirt)]


def _make_row(home: Home, libvirt: Libvirt, found: Found) -> Row:
    paths = home.instance(found.instance_id)
    used = libvirt.measure(f"ktrdr-{found.instance_id}") if found.state == "running" else None
    store = EscalationStore(paths.escalations, found.instance_id)
    return Row(
        found,
        age=seconds_since(found.created_at) if found.created_at else None,
        gates=_gates(home, found),
        cpu_s=used[0] if used else None,
        memory=used[1] if used else None,
        disk=measure_disk(paths),
        denials=_count_denials(home, found.instance_id),
        pending=tuple(one.id for one in store.list() if one.current == "pending"),
    )


def _gates(home: Home, found: Found) -> str:
    """`3 passed`, or the first that did not, of the run that the instance belongs to."""
    try:
        gates = read_report(find_run(home, found.instance_id, found.run_id or "latest")).gates
    except (OSError, KtrdrError):
        return ""
    bad = next((gate for gate in gates if gate.outcome != "passed"), None)
    return f"{bad.name} {bad.outcome}" if bad else f"{len(gates)} passed" if gates else ""


def _count_denials(home: Home, instance_id: str) -> int:
    count = 0
    try:
        with home.instance(instance_id).ledger.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            for line in file:
                if b'"deny"' in line:
                    row = parse_row(line)
                    count += row.get("count", 1) if row is not None else 0
    except OSError:
        return 0
    return count
