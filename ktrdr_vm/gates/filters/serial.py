"""Filters from and to JSON and YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ktrdr_vm.gates.bounds import TemplateError, check_width, measure
from ktrdr_vm.gates.filters.text import require_text

_MAX_YAML = 1024 * 1024
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _plain(value: Any) -> Any:
    """A copy without tuples and without shared parts, which YAML would write as aliases. TemplateError for other types
    than data."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | bool | int | float):
        return str(value) if isinstance(value, str) else value
    raise TemplateError(f"a value of type {type(value).__name__} cannot be converted")


def to_json(
    value: Any,
    indent: int | str | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    separators: Any = None,
    skipkeys: bool = False,
    allow_nan: bool = True,
) -> str:
    check_width(indent * 100 if isinstance(indent, int) else len(indent or "") * 100)
    data, pair = (
        _plain(list(value) if isinstance(value, range) else value),
        tuple(separators) if separators is not None else None,
    )
    measure(separators)
    return json.dumps(
        data,
        indent=indent,
        sort_keys=sort_keys,
        ensure_ascii=ensure_ascii,
        separators=pair,
        skipkeys=skipkeys,
        allow_nan=allow_nan,
    )


def to_nice_json(
    value: Any,
    indent: int | str | None = 4,
    sort_keys: bool = True,
    ensure_ascii: bool = True,
    skipkeys: bool = False,
    allow_nan: bool = True,
) -> str:
    return to_json(value, indent, sort_keys, ensure_ascii, (",", ": "), skipkeys, allow_nan)


def from_json(text: Any) -> Any:
    try:
        return json.loads(require_text("from_json", text))
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"from_json: not JSON: {error}") from None


def to_yaml(
    value: Any,
    indent: int | None = None,
    width: int | None = None,
    sort_keys: bool = True,
    default_flow_style: bool | None = None,
    explicit_start: bool | None = None,
    explicit_end: bool | None = None,
) -> str:
    check_width(width, (indent or 0) * 100)
    return str(
        yaml.dump(
            _plain(value),
            Dumper=_DUMPER,
            allow_unicode=True,
            default_flow_style=default_flow_style,
            indent=indent,
            width=width,
            sort_keys=sort_keys,
            explicit_start=explicit_start,
            explicit_end=explicit_end,
        )
    )


def to_nice_yaml(
    value: Any,
    indent: int | None = 4,
    width: int | None = None,
    sort_keys: bool = True,
    default_flow_style: bool | None = False,
    explicit_start: bool | None = None,
    explicit_end: bool | None = None,
) -> str:
    return to_yaml(value, indent, width, sort_keys, default_flow_style, explicit_start, explicit_end)


def from_yaml(text: Any) -> Any:
    """The data of a YAML document; anything but text as it is, as in Ansible."""
    return _load(text, yaml.load) if isinstance(text, str) else text


def from_yaml_all(text: Any) -> Any:
    if text is None:
        return []
    return _load(text, lambda data, Loader: list(yaml.load_all(data, Loader=Loader))) if isinstance(text, str) else text


def _load(text: str, load: Any) -> Any:
    if len(text) > _MAX_YAML:
        raise TemplateError(f"from_yaml: longer than {_MAX_YAML >> 10} KiB")
    try:
        found = load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The last ones are what PyYAML raises for a value that its tag does not allow, such as `!!bool x`.
        raise TemplateError(f"from_yaml: not YAML: {error}") from None
    # Aliases can describe more data than they take space.
    measure(found)
    return found
