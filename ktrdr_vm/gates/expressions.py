"""Regular expressions of a playbook, which may come from an untrusted branch, on text that a guest wrote: each ends in time.

Python cannot stop an expression that runs. What is surely quick runs here, everything else in a process that can be ended.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.gates import expression_worker
from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.host import process

# Seconds of one expression.
LIMIT = 5.0
MAX_PATTERN = 1_000
# Steps that are surely over in a few hundredths of a second.
_QUICK = 10**7
_UNSURE = _QUICK + 1
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def evaluate(verb: Literal["search", "match", "findall", "sub"], pattern: Any, subject: str, flags: int = 0, replacement: str = "") -> Any:
    """What `expression_worker.evaluate` gives. TemplateError for what is no expression, takes too long or gives too much."""
    text = str(pattern)
    if len(text) > MAX_PATTERN:
        raise TemplateError(f"a regular expression is longer than {MAX_PATTERN} characters")
    try:
        steps = _count_steps(re._parser.parse(text, flags), max(len(subject), 2))  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError) as error:
        raise TemplateError(f"not a regular expression: {error}") from None
    try:
        if steps * len(subject) <= _QUICK:
            return expression_worker.evaluate(verb, text, subject, flags, replacement)
        return _evaluate_apart({"verb": verb, "pattern": text, "subject": subject, "flags": flags, "replacement": replacement})
    except ValueError as error:
        raise TemplateError(f"a regular expression: {error}") from None


def _evaluate_apart(request: dict[str, Any]) -> Any:
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-B", Path(expression_worker.__file__)]
    try:
        done = process.run(argv, stdin=json.dumps(request).encode(), timeout=LIMIT, cwd=Path("/"))
    except KtrdrError as error:
        raise ValueError(f"on {len(request['subject'])} characters: {error.message[-200:]}") from None
    said = json.loads(done.stdout)
    if "error" in said:
        raise ValueError(said["error"])
    return said["answer"]


def _count_steps(parsed: Any, length: int) -> int:
    """At most how many ways a parsed pattern is tried at one place of a text of `length`; no more than _UNSURE."""
    ways = 1
    for operation, argument in parsed:
        name = str(operation)
        if name in _REPEATS:
            low, high, body = int(argument[0]), min(int(argument[1]), length), _count_steps(argument[2], length)
            # Each number of times, and each way in each of them.
            times = max(high - low, 0) + 1
            ways *= times if body == 1 else body**high * times if high <= 32 and low <= 32 else _UNSURE
        elif name == "BRANCH":
            ways *= sum(_count_steps(branch, length) for branch in argument[1])
        elif name == "SUBPATTERN":
            ways *= _count_steps(argument[-1], length)
        elif name in ("ASSERT", "ASSERT_NOT"):
            ways *= _count_steps(argument[1], length)
        elif name == "ATOMIC_GROUP":
            ways *= _count_steps(argument, length)
        elif name == "GROUPREF_EXISTS":
            ways *= sum(_count_steps(branch, length) for branch in argument[1:] if branch)
        if ways > _QUICK:
            return _UNSURE
    return ways
