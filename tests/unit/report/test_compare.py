"""Two runs side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_vm.report.compare import compare_reports
from ktrdr_vm.report.json import decode_report, render_report_json
from ktrdr_vm.report.measurements import Phase
from ktrdr_vm.report.model import Allowance, Denial, GateResult, RunReport, TaskResult


def report(
    *tasks: TaskResult, seconds: float = 10.0, hosts: tuple[str, ...] = (), denied: tuple[str, ...] = ()
) -> RunReport:
    made = RunReport(
        "one", "r", "p", "sandbox", "a", "b", "passed", 0, "t", 60.0,
        phases=(Phase("boot", "ok", "t", seconds),),
        gates=(GateResult("unit", "passed", "t", seconds, tasks),),
        allowed=tuple(Allowance(host, "", 443, "r", 1) for host in hosts),
        denied=tuple(Denial(host, "", 443, "r", 1, "", "") for host in denied),
    )  # fmt: skip
    return decode_report(json.loads(render_report_json(made)))


def task(name: str, outcome: Any = "ok", seconds: float = 1.0) -> TaskResult:
    return TaskResult(name, "command", outcome, False, "t", seconds)


def texts(now: RunReport, before: RunReport, *, worse: bool) -> list[str]:
    return [one.text for one in compare_reports(now, before) if one.worse == worse]


def test_the_same_run_is_no_difference() -> None:
    assert compare_reports(report(task("a")), report(task("a"))) == ()


def test_what_newly_fails_or_is_gone_is_worse_and_what_is_mended_is_not() -> None:
    now = report(task("a", "failed"), task("b"))
    before = report(task("a"), task("b", "failed"), task("c"))
    assert texts(now, before, worse=True) == ["gate unit: a: ok → failed", "gate unit: c: ok → missing"]
    assert texts(now, before, worse=False) == ["gate unit: b: failed → ok"]


@pytest.mark.parametrize("outcome", ["error", "interrupted", "failed", "escalated"])
def test_a_run_that_did_not_pass_is_worse_with_the_same_gates(outcome: Any) -> None:
    before = report(task("a"))
    now = replace(before, outcome=outcome)
    assert texts(now, before, worse=True) == [f"run: passed → {outcome}"] and texts(now, before, worse=False) == []
    assert texts(before, now, worse=False) == [f"run: {outcome} → passed"]


def test_slower_counts_only_when_it_is_by_much() -> None:
    before = report(task("a", seconds=10), task("b", seconds=1), task("c", seconds=100))
    now = report(task("a", seconds=20), task("b", seconds=2.5), task("c", seconds=110))
    assert texts(now, before, worse=True) == ["gate unit: a: 10.0 s → 20.0 s"]
    assert texts(before, now, worse=False) == ["gate unit: a: 20.0 s → 10.0 s"]


def test_new_destinations_are_named() -> None:
    now = report(hosts=("a.test", "b.test"), denied=("c.test",))
    assert texts(now, report(hosts=("a.test",)), worse=True) == [
        "newly reached: b.test:443",
        "newly refused: c.test:443",
    ]
    assert texts(report(hosts=("a.test",)), now, worse=False) == [
        "no longer reached: b.test:443",
        "no longer refused: c.test:443",
    ]
