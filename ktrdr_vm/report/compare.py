"""Differences between the reports of two runs: new failures, durations, destinations. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from ktrdr_vm.report.model import Allowance, Denial, RunReport

# Durations vary on emulated and busy hosts; a difference of both a quarter and two seconds is reported.
SLOWER_RATIO, SLOWER_S = 1.25, 2.0
_GOOD = {"ok", "changed", "passed", "skipped"}


class Difference(NamedTuple):
    """One difference, and whether it is worse."""

    kind: Literal["outcome", "slower", "faster", "reached", "refused", "image", "gone"]
    text: str
    worse: bool


def compare_reports(now: RunReport, before: RunReport) -> tuple[Difference, ...]:
    """The differences of `now`, worse ones first."""
    found = [*_outcomes(now, before), *_times(now, before), *_network(now, before)]
    if now.image_digest != before.image_digest:
        found.append(Difference("image", f"image {before.image_digest[:12]} → {now.image_digest[:12]}", False))
    return tuple(sorted(found, key=lambda one: not one.worse))


def _outcomes(now: RunReport, before: RunReport) -> Iterator[Difference]:
    # With the same gates, a run can have ended with an error or an interrupt.
    if now.outcome != before.outcome:
        yield Difference("outcome", f"run: {before.outcome} → {now.outcome}", now.outcome != "passed")
    new, old = _steps(now), _steps(before)
    for name, (outcome, _) in new.items():
        was = old[name][0] if name in old else "missing"
        if outcome != was and not (outcome in _GOOD and was in _GOOD):
            yield Difference("outcome", f"{name}: {was} → {outcome}", outcome not in _GOOD)
    for name in old.keys() - new.keys():
        yield Difference("gone", f"{name}: {old[name][0]} → missing", True)


def _times(now: RunReport, before: RunReport) -> Iterator[Difference]:
    new, old = _steps(now) | _phases(now), _steps(before) | _phases(before)
    for name, (_, seconds) in new.items():
        if name not in old:
            continue
        was = old[name][1]
        if seconds > was * SLOWER_RATIO and seconds - was > SLOWER_S:
            yield Difference("slower", f"{name}: {was:.1f} s → {seconds:.1f} s", True)
        elif was > seconds * SLOWER_RATIO and was - seconds > SLOWER_S:
            yield Difference("faster", f"{name}: {was:.1f} s → {seconds:.1f} s", False)


def _network(now: RunReport, before: RunReport) -> Iterator[Difference]:
    kinds: tuple[tuple[Literal["reached", "refused"], Sequence[Allowance | Denial], Sequence[Allowance | Denial]], ...]
    kinds = (("reached", now.allowed, before.allowed), ("refused", now.denied, before.denied))
    for kind, rows, rows_before in kinds:
        new, old = {_place(row) for row in rows}, {_place(row) for row in rows_before}
        yield from (Difference(kind, f"newly {kind}: {place}", True) for place in sorted(new - old))
        yield from (Difference(kind, f"no longer {kind}: {place}", False) for place in sorted(old - new))


def _steps(report: RunReport) -> dict[str, tuple[str, float]]:
    """Gates, tasks and the workload by name, with outcome and seconds."""
    found: dict[str, tuple[str, float]] = {}
    for gate in report.gates:
        title = f"gate {gate.title}"
        found[title] = gate.outcome, gate.duration_s
        for task in gate.tasks:
            found.setdefault(f"{title}: {task.name}", (task.outcome, task.duration_s))
    if report.workload:
        found["workload"] = report.workload.outcome, report.workload.duration_s
    return found


def _phases(report: RunReport) -> dict[str, tuple[str, float]]:
    return {
        f"phase {phase.name}": (phase.outcome, phase.duration_s) for phase in report.phases if "gate " not in phase.name
    }


def _place(row: Allowance | Denial) -> str:
    return f"{row.host or row.address}:{row.port}"
