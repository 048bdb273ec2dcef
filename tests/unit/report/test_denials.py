"""What the network refused while a task failed stands beside the task."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.report.egress_summary import DENIED_TITLE, explain_denials
from ktrdr_vm.report.model import Attachment, GateResult, TaskResult


def row(second: int, name: str, verdict: str = "deny") -> dict[str, Any]:
    return {
        "time": f"2026-01-01T00:00:{second:02}.000Z",
        "kind": "tls",
        "verdict": verdict,
        "name": name,
        "port": 443,
        "rule": "name",
    }


LOG = Attachment("log", "x")


def test_only_a_failed_task_is_explained_and_only_by_its_own_time() -> None:
    good = TaskResult("good", "command", "ok", False, "2026-01-01T00:00:00.000Z", 10.0)
    bad = TaskResult("bad", "command", "failed", False, "2026-01-01T00:00:10.000Z", 10.0, evidence=(LOG,))
    rows = [
        row(5, "early.test.org"),
        row(15, "api.test.org"),
        row(16, "api.test.org"),
        row(17, "fine.test.org", "allow"),
        row(40, "late.test.org"),
    ]
    (gate,) = explain_denials((GateResult("unit", "failed", "2026-01-01T00:00:00.000Z", 20.0, (good, bad)),), rows)
    assert gate.tasks[0] == good
    said, *rest = gate.tasks[1].evidence
    text = said.text
    assert said.title == DENIED_TITLE and rest == [LOG]
    assert "api.test.org:443  2 times" in text and "host: api.test.org, ports: [443]" in text
    assert "early" not in text and "late" not in text and "fine" not in text


def test_a_denied_destination_that_the_output_names_is_in_the_first_line() -> None:
    said = "#9 ERROR: could not fetch https://r2.test.org/x.whl: Could not resolve host: r2.test.org"
    bad = TaskResult(
        "containers build",
        "command",
        "failed",
        False,
        "2026-01-01T00:00:10.000Z",
        10.0,
        "non-zero return code 1",
        stderr=said,
    )
    denied = {**row(15, "r2.test.org"), "kind": "dns", "rule": "not allowed"}
    (gate,) = explain_denials(
        (GateResult("s", "failed", "2026-01-01T00:00:00.000Z", 20.0, (bad,)),), [denied, row(16, "aside.test.org")]
    )
    assert gate.tasks[0].message == "non-zero return code 1; the profile does not allow r2.test.org"
    assert "aside.test.org" in gate.tasks[0].evidence[0].text
