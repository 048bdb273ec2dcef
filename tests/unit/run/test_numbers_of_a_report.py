"""Numbers that the page about a run states: the order of exit codes, the samples of a long run, the runs that are kept."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress.ledger import LINES_PER_SECOND, MOST_SUMS
from ktrdr_vm.egress.ledger_totals import MOST_TOTALS
from ktrdr_vm.errors import EscalationStop, GuestError, HostError, KtrdrError, UsageError
from ktrdr_vm.evidence.run_directory import MAX_CONSOLE
from ktrdr_vm.host.run_removal import KEPT_DAYS
from ktrdr_vm.report.measurements import Phase
from ktrdr_vm.report.model import GateResult, WorkloadResult
from ktrdr_vm.run import usage
from ktrdr_vm.run.assembly import MAX_CHANGED
from ktrdr_vm.run.ending import bring_back
from ktrdr_vm.run.results import Results
from ktrdr_vm.run.run import KEPT_RUNS
from ktrdr_vm.run.usage import PERIOD_S, Sampler

TIME = "2026-01-01T00:00:00Z"
ERRORS: dict[KtrdrError, int] = {
    kind("x", hint="y"): code for kind, code in ((UsageError, 2), (HostError, 3), (GuestError, 4), (EscalationStop, 6))
}


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("error", [None, *ERRORS], ids=str)
@pytest.mark.parametrize(("gate", "workload"), [*itertools.product(("passed", "failed"), repeat=2)])
def test_of_several_exit_codes_the_first_in_the_order_counts(
    interrupted: bool, left: bool, error: KtrdrError | None, gate: Any, workload: Any
) -> None:
    results = Results("r", TIME, (GateResult("unit", gate, TIME, 1.0),), WorkloadResult(("x",), workload, 1, TIME, 1.0))
    results.residue = ("tap kv1",) if left else ()
    reached = [
        *([130] if interrupted else []),
        *([5] if left else []),
        *([ERRORS[error]] if error else []),
        *([1] if "failed" in (gate, workload) else []),
        0,
    ]
    assert results.exit_code(error, interrupted=interrupted) == reached[0]


def test_a_long_run_has_fewer_samples_and_not_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, waits = 0.0, []
    sampler = Sampler(SimpleNamespace(measure=lambda _: (moment, 1, 1)), "ktrdr-one", "one")  # type: ignore[arg-type]

    def wait(seconds: float) -> None:
        nonlocal moment
        moment += seconds
        waits.append(round(seconds, 6))
        if moment >= 24 * 3600:
            sampler._ended.set()

    monkeypatch.setattr(sampler._ended, "wait", wait)
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: moment))
    sampler._run()
    assert PERIOD_S == 2 and set(waits[:1999]) == {2.0}, "an hour"
    assert 2000 * PERIOD_S > 3600 and len(sampler.samples) <= 2000
    assert sampler.samples[0].cpu_s == 0 and sampler.samples[-1].cpu_s > 23.9 * 3600


def test_the_bounds_are_those_of_the_page() -> None:
    assert (KEPT_RUNS, KEPT_DAYS, MAX_CHANGED, MAX_CONSOLE) == (20, 90, 1000, 8 << 20)
    assert (LINES_PER_SECOND, MOST_SUMS, MOST_TOTALS) == (100, 64, 2000)


def test_what_cannot_be_fetched_at_the_limit_is_an_event_and_keeps_nothing_else_back() -> None:
    """The workload has ended, and its commits are broken; notes and artifacts come nevertheless."""
    done: list[str] = []

    def fail(*_: object) -> None:
        raise GuestError("no such object", where="x", hint="y")

    harvest = SimpleNamespace(
        pull=fail, fetch_notes=lambda _: done.append("notes"), fetch_artifacts=lambda _: done.append("artifacts")
    )
    stage: Any = SimpleNamespace(
        exists=True, destroyed=False, harvest=harvest, stop_workload=lambda: done.append("the workload has ended")
    )
    recorder: Any = SimpleNamespace(
        phases=[Phase("workload", "failed", TIME, 1.0)],
        directory=SimpleNamespace(event=lambda event, **fields: done.append(f"{event} {fields['what']}")),
    )
    bring_back(stage, Results("r", TIME), recorder)
    assert done == ["the workload has ended", "not_fetched commits", "notes", "artifacts"]
    # A guest that does not answer is waited for once.
    stage.stop_workload = fail
    done.clear()
    bring_back(stage, Results("r", TIME), recorder)
    assert done == ["not_fetched workload"]
