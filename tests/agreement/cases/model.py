"""A case of the corpus: one task, and the parts of its result that both runners must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One task. `keys` are the parts of the registered result that are compared, in addition to the outcome."""

    title: str
    task: dict[str, Any]
    keys: tuple[str, ...] = ()


def make_expression(expression: str) -> Case:
    """A case of one expression: its value, or that it has none."""
    return Case(expression, {"debug": {"msg": f"{{{{ {expression} }}}}"}}, ("msg",))


def make_template(template: str) -> Case:
    """A case of a text with templates in it."""
    return Case(template, {"debug": {"msg": template}}, ("msg",))


def make_condition(expression: Any) -> Case:
    """A case of a condition: true, false or an error."""
    return Case(f"when: {expression}", {"debug": {"msg": "it ran"}, "when": expression}, ("msg",))


def cross(values: Sequence[str], *calls: str) -> Iterator[Case]:
    """Each value in each call; a call is an expression with `_` in place of the value."""
    for call in calls:
        for value in values:
            yield make_expression(call.replace("_", value, 1))


def read_lines(name: str) -> list[str]:
    """The cases of a file beside this one, one on a line; `⏎` is a line break within a case."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [line.replace("⏎", "\n") for line in text.removesuffix("\n").split("\n")]
