"""The Ansible filters and tests that a gate may use, as pure functions with limits."""

from __future__ import annotations

import base64
import hashlib
import json
import operator as operators
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined
from packaging.version import InvalidVersion, Version

from ktrdr_vm.gates.bounds import TemplateError, check_join, check_percent, check_replace, check_width, measure
from ktrdr_vm.gates.expressions import evaluate

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operators.eq, "=": operators.eq, "eq": operators.eq, "!=": operators.ne, "<>": operators.ne, "ne": operators.ne,
    "<": operators.lt, "lt": operators.lt, "<=": operators.le, "le": operators.le, ">": operators.gt, "gt": operators.gt,
    ">=": operators.ge, "ge": operators.ge,
}  # fmt: skip
_TRUE = frozenset({"y", "yes", "on", "1", "true", "t"})
_FALSE = frozenset({"n", "no", "off", "0", "false", "f"})


def to_bool(value: Any) -> bool:
    """The filter `bool` of Ansible: all values except its words for true are false."""
    if isinstance(value, str):
        return value.strip().lower() in _TRUE
    return value is True or value == 1


def parse_bool(value: Any) -> bool | None:
    """A boolean option of a module: true, false, or one of the words for them; None for anything else."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    check_width((indent or 0) * 100)
    return json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)


def _to_nice_json(value: Any, indent: int = 4, sort_keys: bool = True, ensure_ascii: bool = True) -> str:
    return _to_json(value, indent, sort_keys, ensure_ascii)


def _from_json(text: Any) -> Any:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"from_json: not JSON: {error}") from None


def _flags(ignorecase: bool, multiline: bool) -> int:
    return (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)


def _regex_search(text: Any, pattern: Any, *groups: str, ignorecase: bool = False, multiline: bool = False) -> Any:
    found = evaluate("search", pattern, str(text), _flags(ignorecase, multiline))
    if found is None:
        return None
    if not groups:
        return found["groups"][0]
    try:
        return [
            found["groups"][int(group[1:])]
            if re.fullmatch(r"\\\d{1,2}", group)
            else found["names"][group.removeprefix("\\g<").removesuffix(">")]
            for group in groups
        ]
    except (IndexError, KeyError):
        raise TemplateError("regex_search: the expression has no such group") from None


def _regex_findall(text: Any, pattern: Any, multiline: bool = False, ignorecase: bool = False) -> list[Any]:
    found = evaluate("findall", pattern, str(text), _flags(ignorecase, multiline))
    return [tuple(one) if isinstance(one, list) else one for one in found]


def _regex_replace(
    text: Any,
    pattern: Any = "",
    replacement: Any = "",
    ignorecase: bool = False,
    multiline: bool = False,
    count: int = 0,
    mandatory_count: int = 0,
) -> str:
    replaced, times = evaluate("sub", pattern, str(text), _flags(ignorecase, multiline), str(replacement), count)
    if mandatory_count and times != mandatory_count:
        raise TemplateError(f"regex_replace: {str(pattern)[:80]!r} should match {mandatory_count} times and matches {times} times")
    return str(replaced)


def _join(values: Any, d: Any = "", attribute: Any = None) -> str:
    listed = list(values)
    if attribute is not None:
        listed = [value[attribute] for value in listed]
    check_join(d, listed)
    return str(d).join(str(value) for value in listed)


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    check_replace(text, old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _format(text: Any, *values: Any, **named: Any) -> str:
    check_percent(str(text))
    return str(text) % (named or values)


def _indent(text: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    check_width(width * 10)
    lines = str(text).split("\n")
    check_join(" " * width, lines)
    return "\n".join(" " * width + line if (number or first) and (line or blank) else line for number, line in enumerate(lines))


def _center(text: Any, width: int = 80) -> str:
    check_width(width)
    return str(text).center(width)


_LIST_MERGES: dict[str, Callable[[list[Any], list[Any]], list[Any]]] = {
    "replace": lambda old, new: new,
    "keep": lambda old, new: old,
    "append": lambda old, new: old + new,
    "prepend": lambda old, new: new + old,
    "append_rp": lambda old, new: [value for value in old if value not in new] + new,
    "prepend_rp": lambda old, new: new + [value for value in old if value not in new],
}


def _combine(*mappings: Any, recursive: bool = False, list_merge: str = "replace") -> dict[str, Any]:
    if list_merge not in _LIST_MERGES:
        raise TemplateError(f"combine: list_merge is one of {', '.join(_LIST_MERGES)}, not {str(list_merge)[:40]!r}")
    merged: dict[str, Any] = {}
    for mapping in _flatten(mappings, 1):
        if not isinstance(mapping, Mapping):
            raise TemplateError("combine: requires mappings")
        for key, value in mapping.items():
            old = merged.get(key)
            if recursive and isinstance(value, Mapping) and isinstance(old, Mapping):
                merged[key] = _combine(old, value, recursive=True, list_merge=list_merge)
            elif isinstance(value, list) and isinstance(old, list):
                merged[key] = _LIST_MERGES[list_merge](old, value)
                measure(merged[key])
            else:
                merged[key] = value
    return merged


def _flatten(values: Any, levels: int | None = None, skip_nulls: bool = True) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if skip_nulls and value in (None, "None", "null"):
            continue
        if isinstance(value, (list, tuple)) and levels != 0:
            flat.extend(_flatten(value, None if levels is None else levels - 1, skip_nulls))
        else:
            flat.append(value)
        measure(flat[-1:])
    return flat


def _mandatory(value: Any, msg: str = "") -> Any:
    if isinstance(value, Undefined):
        raise TemplateError(msg or "mandatory: the variable is not defined")
    return value


def _ternary(value: Any, true_value: Any, false_value: Any, none_value: Any = None) -> Any:
    if value is None and none_value is not None:
        return none_value
    return true_value if value else false_value


def _b64decode(text: Any) -> str:
    try:
        return base64.b64decode(str(text)).decode("utf-8", "replace")
    except ValueError as error:
        raise TemplateError(f"b64decode: {error}") from None


def _hash(text: Any, hashtype: str = "sha1") -> str:
    if hashtype not in ("md5", "sha1", "sha256", "sha512"):
        raise TemplateError(f"hash: {hashtype} is not supported")
    return hashlib.new(hashtype, str(text).encode(), usedforsecurity=False).hexdigest()


def _without(first: Any, second: Any) -> list[Any]:
    return [value for number, value in enumerate(first) if value not in second and value not in first[:number]]


def _intersect(first: Any, second: Any) -> list[Any]:
    return [value for number, value in enumerate(first) if value in second and value not in first[:number]]


FILTERS: dict[str, Callable[..., Any]] = {
    "b64decode": _b64decode,
    "b64encode": lambda text: base64.b64encode(str(text).encode()).decode(),
    "basename": lambda text: posixpath.basename(str(text)),
    "bool": to_bool,
    "center": _center,
    "combine": _combine,
    "dict2items": lambda mapping, key_name="key", value_name="value": [{key_name: k, value_name: v} for k, v in mapping.items()],
    "difference": _without,
    "dirname": lambda text: posixpath.dirname(str(text)),
    "flatten": _flatten,
    "format": _format,
    "from_json": _from_json,
    "hash": _hash,
    "indent": _indent,
    "intersect": _intersect,
    "items2dict": lambda items, key_name="key", value_name="value": {item[key_name]: item[value_name] for item in items},
    "join": _join,
    "mandatory": _mandatory,
    "quote": lambda text: shlex.quote(str(text)),
    "regex_escape": lambda text: re.escape(str(text)),
    "regex_findall": _regex_findall,
    "regex_replace": _regex_replace,
    "regex_search": _regex_search,
    "replace": _replace,
    "split": lambda text, *arguments: str(text).split(*arguments),
    "splitext": lambda text: list(posixpath.splitext(str(text))),
    "ternary": _ternary,
    "to_json": _to_json,
    "to_nice_json": _to_nice_json,
    "union": lambda first, second: _without([*first, *second], []),
}


def _result(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TemplateError(f"the test {name!r} requires a registered result")
    return value


def _flag(name: str, key: str) -> Callable[[Any], bool]:
    return lambda value: bool(_result(name, value).get(key, False))


def _match(text: Any, pattern: Any, ignorecase: bool = False, multiline: bool = False) -> bool:
    return evaluate("match", pattern, str(text), _flags(ignorecase, multiline)) is not None


def _search(text: Any, pattern: Any, ignorecase: bool = False, multiline: bool = False) -> bool:
    return evaluate("search", pattern, str(text), _flags(ignorecase, multiline)) is not None


def _version(value: Any, other: Any, operator: str = "eq", strict: bool | None = None, version_type: str | None = None) -> bool:
    compare = _COMPARISONS.get(operator)
    if compare is None:
        raise TemplateError(f"version: {str(operator)[:40]!r} is not a comparison")
    if strict is not None or version_type not in (None, "loose", "pep440"):
        raise TemplateError("version: of strict and version_type only version_type='loose' and version_type='pep440' are supported")
    if not value or not other:
        raise TemplateError("version: a version must not be empty")
    try:
        parse: Callable[[str], Any] = Version if version_type == "pep440" else _loose
        return bool(compare(parse(str(value)), parse(str(other))))
    except (TypeError, InvalidVersion):
        raise TemplateError(f"version: {str(value)[:40]!r} and {str(other)[:40]!r} cannot be compared") from None


def _loose(text: str) -> list[int | str]:
    """Numbers and words in their order, as Ansible compares them: `1.0` is more than `1`, and a number with a word is an error."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]{1,40}|[a-z]+|\.)", text) if part not in ("", ".")]


_FAILED = _flag("failed", "failed")

TESTS: dict[str, Callable[..., bool]] = {
    "change": _flag("changed", "changed"),
    "changed": _flag("changed", "changed"),
    "contains": lambda values, value: value in values,
    "failed": _FAILED,
    "failure": _FAILED,
    "falsy": lambda value: not value,
    "match": _match,
    "regex": _search,
    "search": _search,
    "skip": _flag("skipped", "skipped"),
    "skipped": _flag("skipped", "skipped"),
    "subset": lambda first, second: all(value in second for value in first),
    "succeeded": lambda value: not _FAILED(value),
    "success": lambda value: not _FAILED(value),
    "successful": lambda value: not _FAILED(value),
    "superset": lambda first, second: all(value in first for value in second),
    "truthy": bool,
    "version": _version,
}
