"""Booleans as Ansible reads them: the filter `bool`, and options of modules."""

from __future__ import annotations

from typing import Any

_TRUE = frozenset({"y", "yes", "on", "1", "true", "t"})
_FALSE = frozenset({"n", "no", "off", "0", "false", "f"})


def to_bool(value: Any) -> bool:
    """The filter `bool` of Ansible: all values except its words for true are false."""
    if isinstance(value, str):
        return value.lower() in ("yes", "on", "true", "1")
    return isinstance(value, int | float) and value == 1


def parse_bool(value: Any) -> bool | None:
    """A boolean option of a module: true, false, or one of the words for them; None for anything else."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None
