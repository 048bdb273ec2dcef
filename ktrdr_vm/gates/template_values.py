"""Encoding of template values for the process that renders them: JSON, extended for values that JSON does not have."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from ktrdr_vm.gates.templating import OMIT

# No key of a mapping that is encoded as an object begins with it.
_MARK = "\0"


def encode_value(value: Any) -> Any:
    """Plain data for json.dumps. A mapping with keys other than strings becomes pairs; `omit` and bytes have marks."""
    if value is OMIT:
        return {f"{_MARK}omit": True}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: encode_value(one) for key, one in value.items()}
        return {f"{_MARK}pairs": [[encode_value(key), encode_value(one)] for key, one in value.items()]}
    if isinstance(value, list | tuple | set | frozenset):
        return [encode_value(one) for one in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def decode_value(value: Any) -> Any:
    """Decode a value. TypeError or ValueError for anything that encode_value does not return."""
    if isinstance(value, dict):
        if f"{_MARK}omit" in value:
            return OMIT
        if f"{_MARK}pairs" in value:
            return {decode_value(key): decode_value(one) for key, one in value[f"{_MARK}pairs"]}
        return {key: decode_value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [decode_value(one) for one in value]
    return value
