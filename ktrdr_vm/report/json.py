"""`report.json`: documented fields in a stable order, and a report read back from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ktrdr_vm.report.decode import DecodeError, decode
from ktrdr_vm.report.model import RunReport

SCHEMA_VERSION = 1

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
    data = asdict(report)
    data["egress"] = {"allowed": data.pop("allowed"), "denied": data.pop("denied")}
    added = sorted(data.keys() - set(_CONTRACT))
    return {key: data[key] for key in (*_CONTRACT, *added)}


def render_report_json(report: RunReport) -> str:
    """ASCII only, so that the file contains no control sequence or bidirectional mark of the guest."""
    return json.dumps(make_report_document(report), ensure_ascii=True, indent=2, default=str) + "\n"


def decode_report(document: dict[str, Any]) -> RunReport:
    """The report from the plain data that `make_report_document` made, in this version or an older one. DecodeError
    names the first field that is wrong."""
    if document.get("schema_version") != SCHEMA_VERSION:
        raise DecodeError(f"schema_version is not {SCHEMA_VERSION}")
    egress = document.get("egress")
    if not isinstance(egress, dict):
        raise DecodeError("egress: not an object")
    connections = {verdict: egress[verdict] for verdict in ("allowed", "denied") if verdict in egress}
    return decode(RunReport, {**document, **connections})
