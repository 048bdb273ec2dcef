"""A report is read back as what it was: the same classes, or one error that names the field."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.reader import parse_report
from ktrdr_vm.report.decode import DecodeError, decode
from ktrdr_vm.report.json import decode_report, render_report_json
from ktrdr_vm.report.junit_results import TestSummary
from ktrdr_vm.report.measurements import Usage
from ktrdr_vm.report.model import (
    Allowance,
    AnswerRow,
    Attachment,
    Denial,
    EscalationRow,
    GateResult,
    RunReport,
    TaskResult,
    Verification,
    WorkloadResult,
)

_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(-(2**40), 2**40),
    float: st.floats(-1e9, 1e9, allow_nan=False),
    bool: st.booleans(),
    Any: st.none() | st.booleans() | st.text(max_size=4),
}


def make_strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type of the model."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if origin in (Union, types.UnionType):
        [other] = [one for one in arguments if one is not types.NoneType]
        return st.none() | make_strategy(other)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(make_strategy(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(make_strategy, arguments))
    if origin is dict:
        return st.dictionaries(st.text(max_size=4), make_strategy(arguments[1]), max_size=2)
    hints = get_type_hints(kind)
    return st.builds(kind, **{one.name: make_strategy(hints[one.name]) for one in fields(kind)})


@settings(max_examples=60, deadline=None)
@given(make_strategy(RunReport))
def test_a_report_is_read_back_as_it_was(report: RunReport) -> None:
    if report.schema_version == 1:
        assert decode_report(json.loads(render_report_json(report))) == report
    with pytest.raises(DecodeError):
        decode_report({**json.loads(render_report_json(report)), "schema_version": 2})


AT = "2026-01-01T00:00:00Z"
WHOLE = RunReport(
    "one", "r", "p", "sandbox", "a", "b", "failed", 1, AT, 2.5,
    gates=(
        GateResult("unit", "failed", AT, 1.0, (TaskResult("t", "uri", "failed", False, AT, 1.0, evidence=(Attachment("log", "x"),)),),
                   usage=Usage(1.0, 2, 3)),
    ),
    workload=WorkloadResult(("make",), "failed", 2, AT, 1.0), verification=Verification("fresh", "one", "r", "c", "passed", "passed"),
    allowed=(Allowance("a", "", 443, "r", 1),), denied=(Denial("b", "", 443, "r", 1, AT, AT),),
    escalations=(EscalationRow("e1", "one", "network", "blocked", answer=AnswerRow("p", "because", AT, ends=("boot", 1.0))),),
    tests=(TestSummary("x.xml", 1, 0, 0, 0, 1.0),), image={"name": "debian"}, host={"accelerator": "kvm"},
)  # fmt: skip


def find_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a document, except below what a report holds as it is."""
    yield path
    if path[-1:] in (("image",), ("request",)):
        return
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from find_places(one, (*path, key))


@pytest.mark.parametrize("wrong", [None, True, -1.5, "\x1b[0m", [], {}, [[]], 10**400, [{"a": 1}]], ids=repr)
def test_any_other_value_at_any_place_is_refused_or_read_as_its_type(wrong: object) -> None:
    document = json.loads(render_report_json(WHOLE))
    refused = 0
    for path in [path for path in find_places(document) if path]:
        changed = copy.deepcopy(document)
        here = changed
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = wrong
        try:
            report = decode_report(changed)
        except DecodeError as error:
            refused += 1
            assert len(str(error)) < 300
            continue
        # What is accepted has the type, so it can be written and read again.
        assert decode_report(json.loads(render_report_json(report))) == report
    assert refused > 30


def test_a_document_of_an_older_version_gets_the_defaults_and_a_newer_field_is_ignored() -> None:
    document = json.loads(render_report_json(WHOLE))
    for name in ("revisions", "reason", "tests"):
        del document[name]
    del document["gates"][0]["usage"], document["egress"]["denied"]
    document["gates"][0]["invented"] = document["invented"] = {"a": [1]}
    report = decode_report(document)
    assert (report.tests, report.denied, report.gates[0].usage) == ((), (), None)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 2, "egress": {}}']
)
def test_what_is_no_report_is_one_error(content: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse_report(content, "report.json")
    assert caught.value.where == "report.json" and caught.value.hint


def test_the_first_wrong_field_is_named() -> None:
    with pytest.raises(DecodeError, match=r"^tasks\[0\]\.attempts: not a whole number$"):
        decode(GateResult, {"name": "a", "outcome": "passed", "started_at": AT, "duration_s": 1, "tasks": [
            {"name": "t", "module": "m", "outcome": "ok", "changed": False, "started_at": AT, "duration_s": 1, "attempts": "1"}
        ]})  # fmt: skip


def test_every_class_of_the_model_can_be_decoded() -> None:
    """A field of a type that `decode` does not know would be an error at the end of somebody's run."""
    seen: set[Any] = set()

    def visit(kind: Any) -> None:
        for one in get_args(kind):
            visit(one)
        if is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            for hint in get_type_hints(kind).values():
                visit(hint)
        assert (
            get_args(kind) or is_dataclass(kind) or kind in (*_SCALARS, types.NoneType, Ellipsis) or type(kind) is str
        )

    visit(RunReport)
    assert len(seen) > 15
