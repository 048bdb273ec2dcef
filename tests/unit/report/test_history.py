"""What follows from several runs: first runs that pass, time to verdict, flaky tasks, new destinations, answers to
escalations."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from ktrdr_vm.report.history import History, make_history, make_row
from ktrdr_vm.report.history_html import render_history
from ktrdr_vm.report.model import (
    Allowance,
    AnswerRow,
    EscalationRow,
    EscalationState,
    GateResult,
    RunReport,
    TaskResult,
    Verification,
)

EVIL = "<script>alert(1)</script>\x1b[2J\u202e{{ 7*7 }}"


def make_run(day: int, outcome: str = "passed", **changes: Any) -> RunReport:
    """A report. `task` is the outcome of its one task, `reached` the host of its one destination."""
    task, reached = changes.pop("task", "ok"), changes.pop("reached", "")
    stage = changes.pop("stage", "base")
    time = f"2026-01-{day:02}T00:00:00Z"
    gate = GateResult(
        "unit",
        "passed" if task == "ok" else "failed",
        time,
        10.0,
        (TaskResult("tests pass", "shell", task, False, time, 9.0),),
        stage=stage,
    )
    facts: dict[str, Any] = {
        "instance_id": "demo", "run_id": f"r{day}", "profile": "p", "mode": "sandbox", "plan_digest": "d", "image_digest": "i",
        "outcome": outcome, "exit_code": 0, "started_at": time, "duration_s": 60.0 * day, "base_ref": "main", "base_commit": "c1",
        "gates": (gate,), "allowed": (Allowance(reached, "", 443, "r", 1),) if reached else (),
    }  # fmt: skip
    return RunReport(**{**facts, **changes})


def history(*reports: RunReport) -> History:
    return make_history([make_row(report) for report in reports])


def test_only_the_first_run_of_a_commit_counts_as_first() -> None:
    found = history(
        make_run(3), make_run(1, "failed"), make_run(2), make_run(4, base_commit="c2"), make_run(5, instance_id="other")
    )
    assert [(run.run_id, run.first) for run in found.rows] == [
        ("r1", True),
        ("r2", False),
        ("r3", False),
        ("r4", True),
        ("r5", True),
    ]
    assert (found.measures.first_runs, found.measures.first_runs_passed) == (3, 2)
    assert found.measures.first_share == pytest.approx(2 / 3)


def test_the_time_to_verdict_is_the_median_of_runs_with_a_verdict() -> None:
    found = history(
        make_run(1), make_run(2, "failed"), make_run(9, "passed"), make_run(20, "interrupted"), make_run(21, "error")
    )
    assert found.measures.verdict_s == 120.0
    assert history(make_run(1, "error")).measures.verdict_s is None


def test_a_task_with_both_outcomes_on_one_commit_is_flaky() -> None:
    found = history(make_run(1, task="failed"), make_run(2), make_run(3), make_run(4, task="failed", base_commit="c2"))
    assert [(task.name, task.commit, task.judged, task.failures) for task in found.flaky] == [
        ("tests pass", "c1", 3, 1)
    ]


def test_two_tasks_of_one_name_are_not_flaky_in_one_run() -> None:
    run = make_run(1, "failed", task="failed")
    [gate] = run.gates
    both = replace(run, gates=(replace(gate, tasks=(replace(gate.tasks[0], outcome="ok"), *gate.tasks)),))
    assert history(both).flaky == () == history(both, replace(both, run_id="r2")).flaky
    assert [(task.judged, task.failures) for task in history(both, make_run(2)).flaky] == [(2, 1)]


def test_after_a_workload_the_judged_commit_counts() -> None:
    def judged(day: int, commit: str, task: str) -> RunReport:
        verification = Verification("fresh", "demo-verify", "r", commit, "passed", "passed")
        return make_run(day, task=task, stage="verification", verification=verification)

    assert history(judged(1, "w1", "failed"), judged(2, "w2", "ok")).flaky == ()
    assert [task.gate for task in history(judged(1, "w1", "failed"), judged(2, "w1", "ok")).flaky] == [
        "unit (verification)"
    ]


def test_new_destinations_are_those_that_no_earlier_run_of_the_profile_reached() -> None:
    found = history(
        make_run(1, reached="a.example"),
        make_run(2, reached="b.example"),
        make_run(3, reached="a.example"),
        make_run(4, reached="c.example", profile="q"),
    )
    assert [run.new_destinations for run in found.rows] == [(), ("b.example:443",), (), ()]


@pytest.mark.parametrize(
    ("state", "answered", "counted"),
    [("approved", True, "approved"), ("expired", True, "approved"), ("revoked", True, "approved"), ("denied", True, "denied"), ("pending", False, "unanswered"), ("expired", False, "unanswered")],
)  # fmt: skip
def test_escalations_are_counted_by_their_answer(state: EscalationState, answered: bool, counted: str) -> None:
    answer = AnswerRow("root", "needed", "2026-01-01T00:00:00Z") if answered else None
    found = history(make_run(1, escalations=(EscalationRow("e1", "one", "network", "x", state=state, answer=answer),)))
    assert {answer for answer, count in found.measures.escalations.items() if count} == {counted}
    assert found.measures.noise == (0.0 if counted == "approved" else 1.0)


def test_an_empty_history_has_no_measures() -> None:
    found = history()
    assert (found.measures.first_share, found.measures.verdict_s, found.measures.noise) == (None, None, None)
    assert render_history(found, "all") and found.to_json()["runs"] == []


class _Page(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_no_network_and_interprets_nothing() -> None:
    weeks = [make_run(day, profile=EVIL, base_ref=EVIL, reached="a.example") for day in (1, 8, 15)]
    page = render_history(history(*weeks, make_run(20, task="failed")), EVIL)
    found = _Page(page)
    assert "script" not in found.tags and found.urls == [] and "\x1b" not in page and "\u202e" not in page
    # One chart for each measure.
    assert found.tags.count("svg") == 3 and "default-src 'none'" in page
    assert render_history(history(*weeks), "x") == render_history(history(*weeks), "x")


def test_the_document_is_plain_data() -> None:
    document = json.loads(json.dumps(history(make_run(1, task="failed"), make_run(2)).to_json()))
    assert document["measures"]["first_share"] == 1.0 and document["weeks"][0]["week"] == "2026-W01"
    assert document["flaky"][0]["name"] == "tests pass" and "tasks" not in document["runs"][0]
