"""Filters of numbers and sizes."""

from __future__ import annotations

import math
import re
from typing import Any

from ktrdr_vm.gates.bounds import TemplateError, check_binary

_UNITS = "BKMGTPEZY"
_NAMES = dict(zip("KMGTPEZY", ("kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta"), strict=True))


def logarithm(value: Any, base: Any = math.e) -> float:
    try:
        return math.log10(value) if base == 10 else math.log(value, base)
    except TypeError:
        raise TemplateError("log: requires numbers") from None


def power(value: Any, exponent: Any) -> float:
    try:
        check_binary("**", 1, exponent)
        return math.pow(value, exponent)
    except TypeError:
        raise TemplateError("pow: requires numbers") from None


def root(value: Any, base: Any = 2) -> float:
    try:
        return math.sqrt(value) if base == 2 else math.pow(value, 1.0 / float(base))
    except (TypeError, ValueError, ZeroDivisionError):
        raise TemplateError("root: requires numbers that have this root") from None


def human_readable(size: Any, isbits: bool = False, unit: str | None = None) -> str:
    """A number of bytes with the largest unit that it reaches, or with `unit`."""
    if not isinstance(size, int | float):
        raise TemplateError(f"human_readable: requires a number, not {type(size).__name__}")
    fits = (
        power
        for power in reversed(range(len(_UNITS)))
        if (size >= 1024**power if unit is None else unit.upper() == _UNITS[power])
    )
    power = next(fits, 0)
    name = "bits" if isbits else "Bytes"
    return f"{size / 1024**power:.2f} {_UNITS[power] + name[0] if power else name}"


def human_to_bytes(size: Any, default_unit: str | None = None, isbits: bool = False) -> int:
    """The number of bytes, or bits, of a text such as `2.5 MB`."""
    found = re.fullmatch(r"([0-9]{0,100}\.?[0-9]{1,100})(?:\s*([A-Za-z]+))?\s*", str(size))
    if found is None:
        raise TemplateError(f"human_to_bytes: {str(size)[:60]!r} is not a size")
    number, unit = float(found.group(1)), found.group(2) or default_unit
    if unit is None:
        return round(number)
    letter = str(unit)[:1].upper()
    if letter not in _UNITS:
        raise TemplateError(f"human_to_bytes: the unit of {str(size)[:60]!r} is none of {', '.join(_UNITS)}")
    prefix = "" if letter == "B" else letter
    words = (prefix + ("b" if isbits else "B"), _NAMES.get(letter, "") + ("bit" if isbits else "byte"))
    if len(unit) > 1 and unit != words[0] and unit.lower() != words[1]:
        raise TemplateError(
            f"human_to_bytes: the unit of {str(size)[:60]!r} must be {letter}, {words[0]} or {words[1]}"
        )
    return round(number * float(1024 ** _UNITS.index(letter)))
