"""Limits on the cost of one expression of a playbook, because a playbook can come from an untrusted branch.

Python cannot interrupt a running expression from outside, so each operation that can make a short text large or slow is
checked before: repetition, padding, shared containers that become large when printed, loops. Regular expressions have a
separate file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

MAX_SIZE = 4 * 1024 * 1024
MAX_ITERATIONS = 100_000
MAX_SECONDS = 5.0
_MAX_WIDTH = 10_000
_MAX_BITS = 20_000


class TemplateError(Exception):
    """A template or an expression of the playbook cannot be evaluated. The text is the reason, and becomes the message
    of the task."""

    def __init__(self, message: str, lineno: int = 0) -> None:
        super().__init__(message)
        self.lineno = lineno


class UndefinedValue(TemplateError):
    """The reason is a variable that is not defined."""


class Budget:
    """The budget of one rendering: loop iterations and seconds."""

    def __init__(self) -> None:
        self._turns = MAX_ITERATIONS
        self._deadline = time.monotonic() + MAX_SECONDS

    def loop(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._turns -= 1
            if self._turns < 0:
                raise TemplateError(f"a template loops more than {MAX_ITERATIONS} times")
            if time.monotonic() > self._deadline:
                raise TemplateError(f"a template takes longer than {MAX_SECONDS:g} s")
            yield value


def measure(*values: Any) -> int:
    """Roughly the characters needed to print the values; TemplateError beyond MAX_SIZE, without printing them."""
    total, waiting, seen = 0, list(values), 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, (str, bytes)):
            total += len(value)
        elif isinstance(value, dict):
            total += 4 + 4 * len(value)
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            total += 2 + 2 * len(value)
            waiting.extend(value)
        elif isinstance(value, int):
            total += 1 + value.bit_length() // 3
        else:
            total += 8
        if total > MAX_SIZE or seen > MAX_SIZE:
            raise too_large()
    return total


def too_large() -> TemplateError:
    return TemplateError(f"the result of a template is larger than {MAX_SIZE // 1024} KiB")


def check_binary(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would exceed the limits."""
    if operator == "+":
        measure(left, right)
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if (
                isinstance(one, (str, bytes, list, tuple))
                and isinstance(other, int)
                and measure(one) * max(other, 0) > MAX_SIZE
            ):
                raise too_large()
        if _bits(left) + _bits(right) > _MAX_BITS:
            raise TemplateError("a number in a template is too large")
    elif operator == "**":
        if abs(right) > _MAX_BITS or _bits(left) * abs(right) > _MAX_BITS:
            raise TemplateError("a number in a template is too large")
    elif operator == "%" and isinstance(left, str):
        check_percent(left)
        measure(left, right)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def check_percent(text: str) -> None:
    if re.search(r"%[^a-zA-Z%]*(\*|\d{5})", text):
        raise TemplateError("a width in a format is too large")


def check_width(*widths: Any) -> None:
    if any(isinstance(width, int) and abs(width) > _MAX_WIDTH for width in widths):
        raise TemplateError(f"a width in a template is over {_MAX_WIDTH}")


def check_replace(text: Any, old: Any, new: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if old else len(text) + 1
    if len(text) + times * len(new) > MAX_SIZE:
        raise too_large()


def check_join(separator: Any, values: list[Any]) -> None:
    if measure(values) + len(str(separator)) * len(values) > MAX_SIZE:
        raise too_large()


_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_REFUSED_METHODS = frozenset({"translate", "maketrans", "format_map"})


def check_method(owner: Any, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    """Check a call of a method of a string. Returns its arguments."""
    if not isinstance(owner, (str, bytes)):
        return arguments
    if name in _REFUSED_METHODS:
        raise TemplateError(f"the method {name} of a string is not supported")
    measure(owner, *arguments, *keywords.values())
    if name in _PADDING:
        check_width(*arguments, *keywords.values())
        if name == "expandtabs":
            tabs = arguments[0] if arguments else keywords.get("tabsize", 8)
            if isinstance(tabs, int) and str(owner).count("\t") * abs(tabs) > MAX_SIZE:
                raise too_large()
    elif name == "replace" and len(arguments) >= 2:
        check_replace(owner, arguments[0], arguments[1])
    elif name == "join" and arguments:
        values = list(arguments[0])
        check_join(owner, values)
        return (values, *arguments[1:])
    elif name == "format" and re.search(r"\{[^{}]*(:[^{}]*(\{|\d{5}))", str(owner)):
        raise TemplateError("a width in a format is too large")
    return arguments
