"""Totals of the ledger: lines that a rotation drops are summed by destination, so that a flood cannot erase them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.report.ledger_row import LARGEST, find_rule, parse_row

# Maximum number of destinations of one kind and verdict; further ones share one sum without a name.
MOST_TOTALS = 2000
# The first line has the digest of the file that was summed last, and is no line of the ledger.
_SUMMED = "summed"
_MAX_LINE = 64 * 1024
_Key = tuple[str, str, str, str, int, str]


def add_to_totals(totals: Path, dropped: Path) -> int:
    """Sum the lines of `dropped` in `totals`, whose own lines are added like any other. Returns the number of lines of
    both; 0 without `dropped`, or if it is summed already: a guard that is killed may have had no time to remove it."""
    if not dropped.exists() or is_summed(totals, dropped):
        return 0
    content = dropped.read_bytes()
    lines = [*(totals.read_bytes() if totals.exists() else b"").split(b"\n"), *content.split(b"\n")]
    rows = [row for row in map(parse_row, lines) if row]
    sums: dict[_Key, dict[str, Any]] = {}
    held: dict[tuple[str, str], int] = {}
    for row in rows:
        key = _key(row)
        if key not in sums:
            group = key[:2]
            if held.get(group, 0) >= MOST_TOTALS:
                key = (*group, "", "", 0, "other destinations")
            else:
                held[group] = held.get(group, 0) + 1
        _add(sums, key, row)
    written = ({_SUMMED: _digest(content)}, *sums.values())
    write_durably(totals, b"".join(json.dumps(one).encode() + b"\n" for one in written))
    return len(rows)


def is_summed(totals: Path, dropped: Path) -> bool:
    """True if `dropped` is the file that was summed last."""
    try:
        with totals.open("rb") as file:
            first = json.loads(file.readline(_MAX_LINE))
        return bool(first.get(_SUMMED) == _digest(dropped.read_bytes()))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _digest(content: bytes) -> str:
    # Imported on use: a guard starts without it, and rotates after megabytes.
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _key(row: dict[str, Any]) -> _Key:
    name = str(row.get("name", ""))
    # Where the name is checked, the address is any that the guest dialled.
    address = "" if name and row["kind"] in ("tls", "http", "dns") else str(row.get("address", ""))
    return row["kind"], row["verdict"], name, address, int(row.get("port", 0)), find_rule(row)


def _add(sums: dict[_Key, dict[str, Any]], key: _Key, row: dict[str, Any]) -> None:
    kind, verdict, name, address, port, rule = key
    first = row.get("first_at", row["time"])
    total = sums.setdefault(
        key,
        {
            "time": row["time"],
            "instance_id": row["instance_id"],
            "kind": kind,
            "verdict": verdict,
            "name": name,
            "address": address,
            "port": port,
            "rule": rule,
            "count": 0,
            "bytes_in": 0,
            "bytes_out": 0,
            "first_at": first,
        },
    )
    for number, one in (("count", 1), ("bytes_in", 0), ("bytes_out", 0)):
        total[number] = min(total[number] + row.get(number, one), LARGEST)
    total["time"], total["first_at"] = max(total["time"], row["time"]), min(total["first_at"], first)
