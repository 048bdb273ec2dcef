"""The history of runs: how many pass at first, how long a verdict takes, which tasks are flaky, and what agents asked
for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from ktrdr_vm.report.model import EscalationRow, RunOutcome, RunReport

_ANSWERS = ("approved", "denied", "unanswered")


@dataclass(frozen=True)
class GateRow:
    """A gate of a run; `title` names the stage if it is not the base."""

    title: str
    outcome: str
    duration_s: float


@dataclass(frozen=True)
class TaskRow:
    """A task that ran: whether it failed, and the commit that it judged."""

    gate: str
    name: str
    commit: str
    failed: bool


@dataclass(frozen=True)
class RunRow:
    """What the history needs of one report. Durations are seconds."""

    instance_id: str
    run_id: str
    profile: str
    branch: str
    commit: str
    outcome: RunOutcome
    started_at: str
    duration_s: float
    gates: tuple[GateRow, ...]
    tasks: tuple[TaskRow, ...]
    escalations: Mapping[str, int]
    """The number of each kind of answer: approved, denied, unanswered."""
    destinations: tuple[str, ...]
    first: bool = False
    """True if no earlier run of this instance_id and profile had the same base commit."""
    new_destinations: tuple[str, ...] = ()
    """Destinations that no earlier run of this profile reached; empty for the first run of a profile."""


@dataclass(frozen=True)
class FlakyTask:
    """A task that passed in one run and failed in another one of the same commit. `judged` and `failures` are runs."""

    gate: str
    name: str
    commit: str
    judged: int
    failures: int


@dataclass(frozen=True)
class Measures:
    """The measures of some runs. Shares are between 0 and 1, and None if nothing was counted."""

    total: int
    first_runs: int
    first_runs_passed: int
    verdict_s: float | None
    """The median of the durations of runs that ended with a verdict, passed or failed."""
    escalations: Mapping[str, int]

    @property
    def first_share(self) -> float | None:
        return self.first_runs_passed / self.first_runs if self.first_runs else None

    @property
    def noise(self) -> float | None:
        """The share of escalations that were not approved."""
        total = sum(self.escalations.values())
        return 1 - self.escalations["approved"] / total if total else None


@dataclass(frozen=True)
class History:
    """Runs, the oldest first, and what follows from them."""

    rows: tuple[RunRow, ...]
    measures: Measures
    weeks: tuple[tuple[str, Measures], ...]
    """The measures of each ISO week that has runs, such as `2026-W48`."""
    flaky: tuple[FlakyTask, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the tasks of each run, which are in its report."""
        runs = [
            {key: value for key, value in asdict(one).items() if key not in ("tasks", "destinations")}
            for one in self.rows
        ]
        weeks = [{"week": week, **_show_measures(one)} for week, one in self.weeks]
        return {
            "measures": _show_measures(self.measures),
            "flaky": [asdict(one) for one in self.flaky],
            "weeks": weeks,
            "runs": runs,
        }


def _show_measures(one: Measures) -> dict[str, Any]:
    return {**asdict(one), "first_share": one.first_share, "noise": one.noise}


def make_row(report: RunReport) -> RunRow:
    """What the history needs of a report."""
    judged = (report.verification.commit if report.verification else "") or report.base_commit
    gates, tasks = [], []
    for gate in report.gates:
        gates.append(GateRow(gate.title, gate.outcome, gate.duration_s))
        commit = report.base_commit if gate.stage == "base" else judged
        tasks += [
            TaskRow(gate.title, task.name, commit, task.outcome == "failed")
            for task in gate.tasks
            if task.outcome != "skipped"
        ]
    return RunRow(
        instance_id=report.instance_id,
        run_id=report.run_id,
        profile=report.profile,
        branch=report.base_ref,
        commit=report.base_commit,
        outcome=report.outcome,
        started_at=report.started_at,
        duration_s=report.duration_s,
        gates=tuple(gates),
        tasks=tuple(tasks),
        escalations=_count_answers(report.escalations),
        destinations=tuple(sorted({f"{row.host or row.address}:{row.port}" for row in report.allowed})),
    )


def _count_answers(escalations: Iterable[EscalationRow]) -> dict[str, int]:
    counts = dict.fromkeys(_ANSWERS, 0)
    for one in escalations:
        # An approval that ended was one.
        approved = one.answer is not None and one.state != "pending"
        counts["denied" if one.state == "denied" else "approved" if approved else "unanswered"] += 1
    return counts


def make_history(rows: Iterable[RunRow]) -> History:
    """The history of these runs, in any order."""
    known: dict[str, set[str]] = {}
    seen: set[tuple[str, str, str]] = set()
    runs = []
    for row in sorted(rows, key=lambda one: (_moment(one.started_at), one.run_id)):
        key = (row.instance_id, row.profile, row.commit)
        earlier = known.get(row.profile)
        new = tuple(one for one in row.destinations if earlier is not None and one not in earlier)
        runs.append(_with(row, first=key not in seen, new=new))
        seen.add(key)
        known.setdefault(row.profile, set()).update(row.destinations)
    weeks: dict[str, list[RunRow]] = {}
    for row in runs:
        year, week, _ = _moment(row.started_at).isocalendar()
        weeks.setdefault(f"{year}-W{week:02}", []).append(row)
    return History(
        tuple(runs), _measure(runs), tuple((week, _measure(some)) for week, some in weeks.items()), _find_flaky(runs)
    )


def _with(row: RunRow, *, first: bool, new: tuple[str, ...]) -> RunRow:
    return RunRow(**{**vars(row), "first": first, "new_destinations": new})


def _moment(time: str) -> datetime:
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _measure(runs: Sequence[RunRow]) -> Measures:
    first = [row for row in runs if row.first]
    verdicts = [row.duration_s for row in runs if row.outcome in ("passed", "failed")]
    return Measures(
        total=len(runs),
        first_runs=len(first),
        first_runs_passed=sum(row.outcome == "passed" for row in first),
        verdict_s=round(median(verdicts), 3) if verdicts else None,
        escalations={answer: sum(row.escalations[answer] for row in runs) for answer in _ANSWERS},
    )


def _find_flaky(runs: Iterable[RunRow]) -> tuple[FlakyTask, ...]:
    """Tasks with both outcomes on one commit of one profile; the most failures first."""
    counts: dict[tuple[str, str, str, str], list[int]] = {}
    for row in runs:
        # A gate can have several tasks of one name; in this run they passed or failed together.
        failed: dict[tuple[str, str, str, str], bool] = {}
        for task in row.tasks:
            if task.commit:
                key = (row.profile, task.gate, task.name, task.commit)
                failed[key] = failed.get(key, False) or task.failed
        for key, did in failed.items():
            count = counts.setdefault(key, [0, 0])
            count[0] += 1
            count[1] += did
    found = [
        FlakyTask(gate, name, commit, all_, failed)
        for (_, gate, name, commit), (all_, failed) in counts.items()
        if 0 < failed < all_
    ]
    return tuple(sorted(found, key=lambda one: (-one.failures, one.gate, one.name, one.commit)))
