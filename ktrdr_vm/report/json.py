"""`report.json`: documented fields in a stable order."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from ktrdr_vm.report.model import RunReport, TestFile

# Maximal number of failed cases that are listed for each file; all of them are in junit.xml.
_MAX_NAMED = 100

_CONTRACT = (
    "schema_version",
    "instance_id",
    "run_id",
    "profile",
    "mode",
    "plan_digest",
    "image_digest",
    "outcome",
    "started_at",
    "duration_s",
    "phases",
    "gates",
    "workload",
    "egress",
    "escalations",
    "artifacts",
    "residue",
)


def make_report_document(report: RunReport) -> dict[str, Any]:
    """The report as plain data with a stable order of keys."""
    data = asdict(replace(report, tests=()))
    data["tests"] = [_count(one) for one in report.tests]
    data["egress"] = {"allowed": data.pop("allowed"), "denied": data.pop("denied")}
    for gate in data["gates"]:
        for task in gate["tasks"]:
            task["evidence"] = [{"title": title, "text": text} for title, text in task["evidence"]]
    added = sorted(data.keys() - set(_CONTRACT))
    return {key: data[key] for key in (*_CONTRACT, *added)}


def _count(one: TestFile) -> dict[str, Any]:
    return {
        "path": one.path,
        "tests": len(one.cases),
        "failures": one.count("failed"),
        "errors": one.count("error"),
        "skipped": one.count("skipped"),
        "duration_s": one.duration_s,
        "failed": [
            {"classname": case.classname, "name": case.name, "message": case.message[:500]}
            for case in one.failed[:_MAX_NAMED]
        ],
        "problem": one.problem,
        "observed": one.observed,
    }


def render_report_json(report: RunReport) -> str:
    """ASCII only, so that the file contains no control sequence or bidirectional mark of the guest."""
    return json.dumps(make_report_document(report), ensure_ascii=True, indent=2, default=str) + "\n"
