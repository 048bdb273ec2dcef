"""The ledger: one JSON line for each egress decision, written on the host and bounded. Decisions without a line of
their own are counted.

The guest determines the number of denials. Therefore each kind and verdict has a limit of its own, and denials beyond
it are summed by name and rule: they displace neither what was allowed or granted nor notes of the guard. A rotation
sums the lines that it drops.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ktrdr_vm.egress.ledger_totals import add_to_totals, is_summed
from ktrdr_vm.errors import HostError
from ktrdr_vm.host.clock import now
from ktrdr_vm.report.ledger_row import LARGEST, fit_fields, parse_row

# For each kind and verdict; further decisions in the same second are counted in summary lines.
LINES_PER_SECOND = 100
# Maximum number of different sums of one kind and verdict in one second; beyond it they have one sum.
MOST_SUMS = 64
# One file of this size and one older file are kept; what was in earlier ones is in the totals.
MAX_BYTES = 8 * 1024 * 1024
SUPPRESSED = "suppressed"

# Kind, verdict, name, rule, and for an allowed connection its port and, without a name, its address.
_Sum = tuple[str, str, str, str, str, int]
_SUMMED = ("count", "bytes_in", "bytes_out")


class Ledger:
    """Appends to `path`. Every line has `time`, `instance_id`, and the `revision` at the time of writing."""

    def __init__(self, path: Path, instance_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._instance_id = instance_id
        self._clock = clock
        self._file = path.open("ab", buffering=0)
        path.chmod(0o600)
        self._second = 0.0
        self._lines: dict[tuple[str, str], int] = {}
        self._sums: dict[_Sum, dict[str, int]] = {}
        self._held: dict[tuple[str, str], int] = {}
        """The number of sums of a kind and verdict."""
        self._revision = ""

    def revise(self, revision: str) -> None:
        """Lines carry this revision from now on; decisions that were summed before carry the earlier one."""
        if revision != self._revision:
            self.flush()
            self._revision = revision

    def write(self, kind: str, verdict: str, **fields: Any) -> None:
        """Write one decision. `kind`, `verdict` and fields are those of `ledger_row`; what a line must not have is
        omitted."""
        checked = fit_fields(fields)
        second = self._clock()
        if second - self._second >= 1:
            self.flush()
            self._second = second
        written = self._lines.get((kind, verdict), 0)
        if written >= LINES_PER_SECOND:
            self._sum(kind, verdict, checked)
            return
        self._lines[kind, verdict] = written + 1
        self._append({"kind": kind, "verdict": verdict, **checked})

    def _sum(self, kind: str, verdict: str, fields: dict[str, Any]) -> None:
        name, rule = str(fields.get("name", "")), str(fields.get("rule", ""))
        address, port = ("" if name else str(fields.get("address", "")), int(fields.get("port", 0)))
        key: _Sum = (kind, verdict, name, rule, *((address, port) if verdict == "allow" else ("", 0)))
        if key not in self._sums:
            held = self._held.get((kind, verdict), 0)
            if held < MOST_SUMS:
                self._held[kind, verdict] = held + 1
            else:
                key = (kind, verdict, "", "", "", 0)
        total = self._sums.setdefault(key, dict.fromkeys(_SUMMED, 0))
        for number, one in zip(_SUMMED, (1, 0, 0), strict=True):
            total[number] = min(total[number] + int(fields.get(number, one)), LARGEST)

    def flush(self) -> None:
        """Write the sums since the last call, and begin another second."""
        sums, self._sums, self._lines, self._held = self._sums, {}, {}, {}
        for (kind, verdict, name, rule, address, port), total in sums.items():
            message = f"of rule {rule}" if rule and rule != SUPPRESSED else ""
            said = {"name": name, "address": address, "port": port, "message": message}
            # Bytes too: what an upload sent must not depend on how many other connections ended in its second.
            counted = {number: count for number, count in total.items() if count or number == "count"}
            known = {key: value for key, value in said.items() if value}
            self._append({"kind": kind, "verdict": verdict, **known, "rule": SUPPRESSED, **counted})

    def _append(self, fields: dict[str, Any]) -> None:
        ours = {"time": now(), "instance_id": self._instance_id, "revision": self._revision}
        line = json.dumps({**fields, **ours}, ensure_ascii=True).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                # A partial line would make the line after it unreadable.
                os.ftruncate(self._file.fileno(), size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # The disk is full or fails: the decision is counted, and the count is written when there is space again.
            self._sum(str(fields["kind"]), str(fields["verdict"]), fields)
            return
        if size + len(line) > MAX_BYTES:
            self._rotate()

    def _rotate(self) -> None:
        self._file.close()
        summed = 0
        try:
            summed = add_to_totals(totals_of(self._path), older(self._path))
        except (OSError, HostError):
            # Without space for the totals, the older file is kept beside them, and this one grows until the next line,
            # at which the rotation is repeated.
            self._file = self._path.open("ab", buffering=0)
            return
        self._path.rename(older(self._path))
        self._file = self._path.open("ab", buffering=0)
        self._path.chmod(0o600)
        if summed:
            note = {
                "rule": "rotation",
                "count": summed,
                "message": "as many of the oldest lines are kept as totals by destination only",
            }
            self._append({"kind": "guard", "verdict": "note", **note})

    def close(self) -> None:
        self.flush()
        self._file.close()


def older(path: Path) -> Path:
    """The path of the file with the lines before those of the current file."""
    return path.with_name(path.name + ".1")


def totals_of(path: Path) -> Path:
    """The path of the totals: the sums of lines that are in neither file any more, in the same format; before them, the
    digest of the last file that was summed."""
    return path.with_name(path.name + ".totals")


def read_kept(path: Path) -> list[dict[str, Any]]:
    """The totals, then every line that is kept, the oldest first. What cannot be parsed as a line is omitted."""
    rows = []
    summed = is_summed(totals_of(path), older(path))
    for one in (totals_of(path), older(path), path):
        if one.exists() and not (summed and one == older(path)):
            rows += [row for row in map(parse_row, one.read_bytes().split(b"\n")) if row is not None]
    return rows


def read_ledger(path: Path, *, follow: bool, pause: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """Every line that is kept, the oldest first; with `follow` also later lines, across every rotation.

    FileNotFoundError if there is no ledger. With `follow` it ends when the folder is removed with the instance.
    """
    files = _open_after(path, None)
    if not files:
        raise FileNotFoundError(2, "there is no ledger", str(path))
    while files:
        file = files.pop(0)
        with file:
            yield from _lines(file)
            while follow and not files and path.parent.exists():
                files = _open_after(path, _inode(file))
                if not files:
                    pause(0.2)
                # Read after the check: what was written before the rotation is in this file.
                yield from _lines(file)


def _open_after(path: Path, read: int | None) -> list[BinaryIO]:
    """The files after the one with the inode `read`; empty if that one is still the current file."""
    try:
        current = path.open("rb")
    except FileNotFoundError:
        return []  # removed, or between two names
    if _inode(current) == read:
        current.close()
        return []
    try:
        before = older(path).open("rb")
    except FileNotFoundError:
        return [current]
    if _inode(before) in (read, _inode(current)):
        before.close()
        return [current]
    return [before, current]


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


def _lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Complete lines from the current position on. A partial line is left for the next call."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(at)
            return
        row = parse_row(line)
        if row is not None:
            yield row
