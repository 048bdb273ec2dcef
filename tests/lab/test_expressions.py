"""Regular expressions that take for ever, or all memory, end; what only looks like it is answered. In a process of its own, so not a unit test."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ktrdr_vm.gates import expressions
from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.expressions import evaluate

A = "a" * 60


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        ("(a+)+$", A + "b"),
        ("(a|aa)+$", A + "b"),
        ("a*a*a*a*b", "a" * 60_000),
        ("(?:(?:(?:a{0,16}){0,16}){0,16}){0,16}c", A),
        ("(?:a{1,16})*b", A),
        ("x.*y", "x" * 200_000),
        ("(?:a{1,99999}){1,99999}b", "a" * 1_000),
    ],
)
def test_what_takes_for_ever_is_ended(pattern: str, subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT", 1.0)
    began = time.monotonic()
    with pytest.raises(TemplateError, match="did not end within 1 s"):
        evaluate("search", pattern, subject)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("verb", "pattern", "subject", "answer"),
    [
        ("search", "(a+)+$", A, {"groups": [A, A], "names": {}}),
        ("search", "(a|b)+(?P<end>c)", "ab" * 5_000 + "c", {"groups": ["ab" * 5_000 + "c", "b", "c"], "names": {"end": "c"}}),
        ("search", r"\d+ passed", "\n".join(["a line of a log"] * 10_000 + ["12 passed"]), {"groups": ["12 passed"], "names": {}}),
        ("match", "(?:x|y)*z", "xy" * 5_000, None),
        ("findall", r"(\w)(\d*)", "a1 b22 " * 2_000, [["a", "1"], ["b", "22"]] * 2_000),
        ("findall", "(?:ab)+", "abab-" * 2_000, ["abab"] * 2_000),
        ("sub", r"\s+", "a \ud800  b" * 2_000, "a\ud800b" * 2_000),
    ],
)
def test_what_looks_like_it_is_answered_as_python_answers(verb: Any, pattern: str, subject: str, answer: Any) -> None:
    """Long enough to be asked apart, or with repeats in each other."""
    assert evaluate(verb, pattern, subject) == answer


@pytest.mark.parametrize(
    ("verb", "pattern", "subject", "more", "said"),
    [
        ("sub", "a", "a" * 1_000_000, "b" * 1_000_000, "too large"),
        ("findall", "(((a)))", "a" * 3_000_000, "", "too much"),
        ("search", "(a", A, "", "unterminated"),
        ("search", "a" * 2_000, A, "", "longer than"),
        ("sub", "(a|b)+", "ab" * 5_000, "\\9", "invalid group reference"),
    ],
)
def test_what_cannot_be_is_said(verb: Any, pattern: str, subject: str, more: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        evaluate(verb, pattern, subject, 0, more)
