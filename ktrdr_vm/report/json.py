"""`report.json`: the contract's fields first and in its order, then what was added to them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ktrdr_vm.report.model import RunReport

_CONTRACT = (
    "schema_version", "instance_id", "run_id", "profile", "mode", "plan_digest", "image_digest", "outcome", "started_at", "duration_s",
    "phases", "gates", "workload", "egress", "escalations", "artifacts", "residue",
)  # fmt: skip


def make_report_document(report: RunReport) -> dict[str, Any]:
    """The report as plain data with a stable order of keys."""
    data = asdict(report)
    data["egress"] = {"allowed": data.pop("allowed"), "denied": data.pop("denied")}
    for gate in data["gates"]:
        for task in gate["tasks"]:
            task["evidence"] = [{"title": title, "text": text} for title, text in task["evidence"]]
    added = sorted(data.keys() - set(_CONTRACT))
    return {key: data[key] for key in (*_CONTRACT, *added)}


def render_report_json(report: RunReport) -> str:
    """ASCII only, so that no control sequence or bidirectional mark of the guest acts when the file is shown."""
    return json.dumps(make_report_document(report), ensure_ascii=True, indent=2, default=str) + "\n"
