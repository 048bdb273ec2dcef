"""`report.html`: one self-contained page: no network, printable, and usable without its script, which filters tasks.

The template escapes automatically, and every string is escaped by `escape_text` first, so that neither markup nor
control characters of the guest are interpreted. The size of the page is limited: outputs share a budget, failures
first.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ktrdr_vm.report.escape import escape_text
from ktrdr_vm.report.junit_results import TestFile
from ktrdr_vm.report.model import Attachment, GateResult, RunReport, TaskResult
from ktrdr_vm.report.plot import render_timeline, render_usage
from ktrdr_vm.report.summary import (
    describe_denial,
    describe_tests,
    describe_verification,
    find_last_words,
    format_bytes,
    format_duration,
)

_SCRIPT = Path(__file__).parent / "templates" / "filter.js"
_BUDGET = 3 * 1024 * 1024
_FAILED_OUTPUT = 48 * 1024
_OTHER_OUTPUT = 4 * 1024


def render_html(report: RunReport, test_files: Sequence[TestFile] = ()) -> str:
    """The page as text, with the failed cases of `test_files`. Pure: the same report gives the same bytes."""
    template = _report_environment().get_template("report.html.j2")
    script = _SCRIPT.read_text(encoding="utf-8").strip()
    # The content security policy permits only this script, by its digest.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        template.render(
            report=report,
            test_files=[(file, file.sum_up()) for file in test_files],
            outputs=_share_budget(report.gates),
            key=id,
            usage=render_usage(report.samples),
            timeline=render_timeline(report.phases),
            script=Markup(script),  # noqa: S704 - our own file
            script_digest=digest,
        )
        + "\n"
    )


def _finalize(value: Any) -> Any:
    return escape_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def make_environment() -> Environment:
    """The environment of pages: it escapes each text, as markup and as control characters."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


@cache
def _report_environment() -> Environment:
    environment = make_environment()
    environment.filters |= {
        "duration": format_duration,
        "bytes": format_bytes,
        "denial": describe_denial,
        "tests": describe_tests,
        "last_words": find_last_words,
        "verification": describe_verification,
    }
    return environment


def _share_budget(gates: Iterable[GateResult]) -> dict[int, list[tuple[str, str]]]:
    """The texts for each task, by the `id` of the task: failed ones first, and the ends of long texts."""
    tasks = [task for gate in gates for task in gate.tasks]
    left = _BUDGET
    shown: dict[int, list[tuple[str, str]]] = {}
    for task in sorted(tasks, key=lambda task: task.outcome != "failed"):
        limit = _FAILED_OUTPUT if task.outcome == "failed" else _OTHER_OUTPUT
        texts = []
        for one in _texts(task):
            kept = one.text[-min(limit, left) :] if left > 0 else ""
            left -= len(kept)
            cut = len(one.text) - len(kept)
            texts.append((one.title, f"[{cut} earlier characters are in report.json]\n{kept}" if cut else kept))
        shown[id(task)] = texts
    return shown


def _texts(task: TaskResult) -> list[Attachment]:
    texts = (*task.evidence, Attachment("standard error", task.stderr), Attachment("standard output", task.stdout))
    return [one for one in texts if one.text]
