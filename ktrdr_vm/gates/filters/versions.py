"""The test `version`: loose, strict, semantic and Python versions."""

from __future__ import annotations

import operator as operators
import re
from collections.abc import Callable
from typing import Any

from ktrdr_vm.gates.bounds import TemplateError

# Each compares the sign of a comparison of two versions with 0.
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operators.eq,
    "=": operators.eq,
    "eq": operators.eq,
    "!=": operators.ne,
    "<>": operators.ne,
    "ne": operators.ne,
    "<": operators.lt,
    "lt": operators.lt,
    "<=": operators.le,
    "le": operators.le,
    ">": operators.gt,
    "gt": operators.gt,
    ">=": operators.ge,
    "ge": operators.ge,
}
_IDENTIFIER = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMANTIC = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)
_STRICT = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:([ab])(\d+))?", re.ASCII)
_MAX_VERSION = 200


def compare_versions(
    value: Any, version: Any, operator: str = "eq", strict: bool | None = None, version_type: str | None = None
) -> bool:
    if strict is not None and version_type is not None:
        raise TemplateError("version: strict and version_type cannot be used together")
    if not value or not version:
        raise TemplateError("version: a version must not be empty")
    kind = version_type or ("strict" if strict else "loose")
    if kind not in _KINDS:
        raise TemplateError(f"version: version_type is one of {', '.join(_KINDS)}, not {str(kind)[:40]!r}")
    compare = _COMPARISONS.get(operator)
    if compare is None:
        raise TemplateError(f"version: {str(operator)[:40]!r} is not a comparison")
    try:
        first, second = (_KINDS[kind](str(one)[:_MAX_VERSION]) for one in (value, version))
        return compare(0 if first == second else -1 if first < second else 1, 0)
    except (TypeError, ValueError):
        raise TemplateError(
            f"version: {str(value)[:40]!r} and {str(version)[:40]!r} cannot be compared as {kind} versions"
        ) from None


def _loose(text: str) -> list[int | str]:
    """Numbers and words in their order: `1.0` is more than `1`, and a number with a word is an error."""
    return [
        int(part) if part.isdigit() else part
        for part in re.split(r"([0-9]{1,40}|[a-z]+|\.)", text)
        if part not in ("", ".")
    ]


def _strict(text: str) -> tuple[Any, ...]:
    """Two or three numbers, and `a1` or `b1` for what is before the release."""
    found = _STRICT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    before = (found.group(4), int(found.group(5))) if found.group(4) else ("c", 0)
    return int(found.group(1)), int(found.group(2)), int(found.group(3) or 0), before


def _semantic(text: str) -> tuple[Any, ...]:
    """Semantic versions, in their order: numbers before words, and what is before a release before it. Build metadata
    has no order."""
    found = _SEMANTIC.fullmatch(text)
    if found is None:
        raise ValueError(text)
    before = [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in (found.group(4) or "").split(".") if part
    ]
    return *(int(part) for part in found.group(1, 2, 3)), not before, before


def _python(text: str) -> Any:
    # Imported late: every plan with gates loads the tests, and this package is for one kind of version only.
    from packaging.version import Version

    return Version(text)


_KINDS: dict[str, Callable[[str], Any]] = {
    "loose": _loose, "strict": _strict, "semver": _semantic, "semantic": _semantic, "pep440": _python,
}  # fmt: skip
