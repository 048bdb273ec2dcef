"""Decoding of JSON into the frozen classes of the report model, with exactly their types."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_MAX_INT = 2**63


class DecodeError(ValueError):
    """The data is not of the type. The text names the first field that is wrong."""


def decode(kind: type[T], data: object, path: str = "") -> T:
    """An instance of the dataclass `kind` from decoded JSON; DecodeError if a value has another type.

    A missing field gets its default, so that a document of an older version can be read; an unknown one is ignored.
    """
    if not isinstance(data, dict):
        raise DecodeError(f"{path or kind.__name__}: not an object")
    found = {}
    for field in fields(cast(Any, kind)):
        place = f"{path}.{field.name}" if path else field.name
        if field.name in data:
            found[field.name] = _decode_any(_hints(cast(Any, kind))[field.name], data[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DecodeError(f"{place}: missing")
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode_any(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        [other] = [one for one in arguments if one is not types.NoneType]
        return _decode_any(other, value, path)
    if origin is Literal:
        if type(value) not in {type(one) for one in arguments} or value not in arguments:
            raise DecodeError(f"{path}: {value!a:.60}")
        return value
    if origin is tuple:
        return _decode_tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise DecodeError(f"{path}: not an object")
        return {name: _decode_any(arguments[1], one, f"{path}.{name!a:.60}") for name, one in value.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        return decode(kind, value, path)
    return _decode_scalar(kind, value, path)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise DecodeError(f"{path}: not a list")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(kinds) != len(value):
        raise DecodeError(f"{path}: not {len(kinds)} values")
    return tuple(
        _decode_any(kind, one, f"{path}[{number}]") for number, (kind, one) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float:
        # An integer of any length is JSON; renderers and clocks work with finite numbers.
        if type(value) not in (int, float) or abs(value) >= _MAX_INT or not math.isfinite(value):
            raise DecodeError(f"{path}: not a number")
        return float(value)
    if kind is int and (type(value) is not int or abs(value) >= _MAX_INT):
        raise DecodeError(f"{path}: not a whole number")
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise DecodeError(f"{path}: {type(value).__name__}")
    return value
