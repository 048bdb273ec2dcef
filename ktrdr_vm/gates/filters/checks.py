"""Tests (`is …`) of Ansible."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.expressions import evaluate
from ktrdr_vm.gates.filters.booleans import parse_bool
from ktrdr_vm.gates.filters.text import make_flags
from ktrdr_vm.gates.filters.versions import compare_versions


def _result(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TemplateError(f"the test {name!r} requires a registered result")
    return value


def _flag(key: str, *, when_missing: bool = False, negated: bool = False) -> Callable[[Any], bool]:
    return lambda value: bool(_result(key, value).get(key, when_missing)) is not negated


def is_changed(result: Any) -> bool:
    """True if a task or, of a result that does not say so, the result of an item has changed something."""
    found = _result("changed", result)
    items = found.get("results")
    if "changed" in found or not isinstance(items, list):
        return bool(found.get("changed"))
    if not items:
        raise TemplateError("changed: the result has an empty list of results")
    return isinstance(items[0], Mapping) and any(item.get("changed") for item in items)


def is_timed_out(result: Any) -> bool:
    found = _result("timedout", result).get("timedout")
    return bool(found and isinstance(found, Mapping) and found.get("period"))


def is_match(text: Any = "", pattern: Any = "", ignorecase: bool = False, multiline: bool = False) -> bool:
    return evaluate("match", pattern, str(text), make_flags(ignorecase, multiline)) is not None


def is_search(text: Any = "", pattern: Any = "", ignorecase: bool = False, multiline: bool = False) -> bool:
    return evaluate("search", pattern, str(text), make_flags(ignorecase, multiline)) is not None


def is_regex(
    text: Any = "", pattern: Any = "", ignorecase: bool = False, multiline: bool = False, match_type: str = "search"
) -> bool:
    if match_type not in ("search", "match", "fullmatch"):
        raise TemplateError(f"regex: match_type is search, match or fullmatch, not {str(match_type)[:40]!r}")
    if match_type == "fullmatch":
        return evaluate("match", f"(?:{pattern})\\Z", str(text), make_flags(ignorecase, multiline)) is not None
    return (
        evaluate("match" if match_type == "match" else "search", pattern, str(text), make_flags(ignorecase, multiline))
        is not None
    )


def is_truthy(value: Any, convert_bool: bool = False) -> bool:
    if convert_bool:
        parsed = parse_bool(int(value) if isinstance(value, float) and value in (0.0, 1.0) else value)
        return bool(value) if parsed is None else parsed
    return bool(value)


def is_nan(value: Any) -> bool:
    try:
        return math.isnan(value)
    except TypeError:
        return False


def is_uri(value: Any, schemes: Any = None) -> bool:
    try:
        found = urllib.parse.urlparse(value)
        return found.scheme is not None and found.path is not None and (not schemes or found.scheme in schemes)
    except Exception:
        return False


def is_url(value: Any, schemes: Any = None) -> bool:
    if not is_uri(value, schemes):
        return False
    found = urllib.parse.urlparse(value)
    return bool(found.netloc or found.scheme == "file")


def is_absolute(path: Any) -> bool:
    if not isinstance(path, str):
        raise TemplateError(f"abs: requires text, not {type(path).__name__}")
    return path.startswith("/")


def _contains(first: Any, second: Any) -> bool:
    return set(first) >= set(second)


def _is_contained(first: Any, second: Any) -> bool:
    return set(first) <= set(second)


TESTS: dict[str, Callable[..., bool]] = {
    "abs": is_absolute,
    "all": lambda values: all(values),
    "any": lambda values: any(values),
    "change": is_changed,
    "changed": is_changed,
    "contains": lambda values, value: value in values,
    "failed": _flag("failed"),
    "failure": _flag("failed"),
    "falsy": lambda value, convert_bool=False: not is_truthy(value, convert_bool),
    "finished": _flag("finished", when_missing=True),
    "is_abs": is_absolute,
    "isnan": is_nan,
    "issubset": _is_contained,
    "issuperset": _contains,
    "match": is_match,
    "nan": is_nan,
    "reachable": _flag("unreachable", negated=True),
    "regex": is_regex,
    "search": is_search,
    "skip": _flag("skipped"),
    "skipped": _flag("skipped"),
    "started": _flag("started", when_missing=True),
    "subset": _is_contained,
    "succeeded": _flag("failed", negated=True),
    "success": _flag("failed", negated=True),
    "successful": _flag("failed", negated=True),
    "superset": _contains,
    "timedout": is_timed_out,
    "truthy": is_truthy,
    "unreachable": _flag("unreachable"),
    "uri": is_uri,
    "url": is_url,
    "urn": lambda value: is_uri(value, ["urn"]),
    "version": compare_versions,
    "version_compare": compare_versions,
}
