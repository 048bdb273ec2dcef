"""Every text of a report at once is hostile: each form is valid text, and acts on no terminal and in no document."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any
from xml.etree import ElementTree

import pytest

from ktrdr_vm.report.history import make_history, make_row
from ktrdr_vm.report.history_html import render_history
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.model import RunReport
from ktrdr_vm.report.pull_request import Change, find_missing, make_title, render_pull_request
from ktrdr_vm.report.summary import render_summary_text

HOSTILE = "\udcff\x1b[2J<script>`|\u202e"
MOMENT = "2026-01-01T00:00:00.000Z"


def make(kind: Any, name: str = "") -> Any:
    """A value of a type of the model, in which every free text is the hostile one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (str, Any):
        return MOMENT if name in ("time", "at") or name.endswith("_at") else HOSTILE
    if kind in (int, float, bool):
        return kind(1)
    if origin is typing.Literal:
        return arguments[-1]
    if origin in (typing.Union, types.UnionType):
        return make(next(one for one in arguments if one is not types.NoneType), name)
    if origin is tuple:
        return (make(arguments[0], name),) if arguments[-1] is Ellipsis else tuple(make(one, name) for one in arguments)
    if origin in (dict, Mapping):
        return {HOSTILE: make(arguments[1], name)}
    assert is_dataclass(kind) and isinstance(kind, type), kind
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: make(hints[field.name], field.name) for field in fields(kind)})


REPORT: RunReport = replace(make(RunReport), outcome="passed")
CHANGES = (Change("a" * 40, HOSTILE),)
MODES = ("fresh", "same")
FORMS: dict[str, Callable[[RunReport], str]] = {
    "json": render_report_json,
    "html": render_html,
    "junit": render_junit,
    "summary": render_summary_text,
    "pull request": lambda report: render_pull_request(report, {"SUMMARY.md": HOSTILE, HOSTILE: HOSTILE}, CHANGES),
    "missing": lambda report: render_pull_request(report, {}, ()),
    "history": lambda report: render_history(make_history([make_row(report)]), "all"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", [*MODES, None])
def test_no_text_of_a_report_acts(form: str, mode: Any) -> None:
    assert REPORT.verification is not None
    report = replace(REPORT, verification=replace(REPORT.verification, mode=mode) if mode else None)
    text = FORMS[form](report)
    text.encode()
    assert "\x1b" not in text and "\u202e" not in text
    if form == "junit":
        ElementTree.fromstring(text)
    if form in ("html", "history"):
        assert "<script>`" not in text


def test_a_title_is_one_line_of_valid_text() -> None:
    title = make_title(REPORT, CHANGES)
    assert title.encode() and "\n" not in title and "\x1b" not in title
    assert all(one.encode("utf-8", "surrogateescape") for one in find_missing(REPORT, {}, CHANGES))
