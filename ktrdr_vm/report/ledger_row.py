"""One line of the ledger: its fields, types and lengths. Writers and readers use the same check.

A field can contain a value of the guest, from a child process without privileges. An invalid line, or one with a field
that it must not set, is refused as a whole and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

KINDS = frozenset("dns tls http tcp broker telemetry drop grant escalation guard".split())
VERDICTS = frozenset({"allow", "deny", "note"})
# Maximal characters of each text field, such as a DNS name with a wildcard; the guard cuts its own texts.
_TEXTS = {
    "name": 255,
    "address": 64,
    "rule": 120,
    "message": 1000,
    "method": 20,
    "path": 400,
    "type": 20,
    "protocol": 20,
    "first_at": 40,
}
_NUMBERS = frozenset(
    "port bytes_in bytes_out ms status count ttl seconds accepted refused refused_rate refused_queue claims sent"
    " dropped".split()
)
_LISTS = frozenset({"addresses", "ports"})
_MOST_IN_A_LIST = 64
_OURS = frozenset({"time", "instance_id", "kind", "verdict"})
# Of the guard as well. Lines of earlier versions and totals have none.
_REVISION = re.compile(r"[0-9a-f]{12}-(?:[0-9a-f]{16}|0)-[0-9]{1,15}")
_OF_RULE = "of rule "
# Of any number; sums end there.
LARGEST = 2**53


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a decision, unchanged. ValueError names the first that is unknown, reserved, of a wrong type or too
    long."""
    for key, value in fields.items():
        if not _fits(key, value):
            raise ValueError(
                f"the ledger has no such field: {str(key)[:40]!a}"
                if key not in _known()
                else f"{key} has the wrong type"
            )
    return dict(fields)


def fit_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Cut texts to their lengths, and remove invalid fields, so that a decision is recorded in any case."""
    cut = {
        key: value[: _TEXTS[key]] if key in _TEXTS and isinstance(value, str) else value
        for key, value in fields.items()
    }
    return {key: value for key, value in cut.items() if _fits(key, value)}


def find_rule(row: Mapping[str, Any]) -> str:
    """The rule of a decision. A count of several decisions has it in its message."""
    rule, message = str(row.get("rule", "")), str(row.get("message", ""))
    return message[len(_OF_RULE) :] if rule == "suppressed" and message.startswith(_OF_RULE) else rule


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """A line of the ledger; None for an incomplete or invalid one. Unknown fields are omitted."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return check_row(row)


def check_row(row: object) -> dict[str, Any] | None:
    """The same for a line that was decoded."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in _OURS):
        return None
    if (
        row["kind"] not in KINDS
        or row["verdict"] not in VERDICTS
        or not 20 <= len(row["time"]) <= 40
        or len(row["instance_id"]) > 63
    ):
        return None
    revision = row.get("revision", "")
    kept = {"revision": revision} if isinstance(revision, str) and _REVISION.fullmatch(revision) else {}
    return {key: value for key, value in row.items() if key in _OURS or _fits(key, value)} | kept


def _known() -> frozenset[str]:
    return frozenset(_TEXTS) | _NUMBERS | frozenset(_LISTS)


def _fits(key: str, value: Any) -> bool:
    if key in _TEXTS:
        return isinstance(value, str) and len(value) <= _TEXTS[key]
    if key in _NUMBERS:
        number = type(value) is int or (key == "seconds" and type(value) is float)
        return number and 0 <= value <= (65535 if key == "port" else LARGEST)
    if key in _LISTS and isinstance(value, list) and len(value) <= _MOST_IN_A_LIST:
        return all(_fits("port" if key == "ports" else "address", one) for one in value)
    return False
