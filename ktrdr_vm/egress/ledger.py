"""The ledger: one JSON line for each egress decision, written on the host, bounded, and complete: what is not written is counted."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ktrdr_vm.host.clock import now

# A guest that makes decisions faster than this gets a line that counts the rest. Sixty seconds of it are 3 MB.
LINES_PER_SECOND = 200
# One file of this size and one older one are kept.
MAX_BYTES = 16 * 1024 * 1024


class Ledger:
    """Appends to `path`. Every line has `time` and `instance_id`."""

    def __init__(self, path: Path, instance_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._instance_id = instance_id
        self._clock = clock
        self._file = path.open("ab", buffering=0)
        path.chmod(0o600)
        self._second = 0.0
        self._lines = 0
        self._suppressed: dict[tuple[str, str], int] = {}

    def write(self, kind: str, verdict: str, **fields: Any) -> None:
        """One decision. `kind` is dns, tls, http, tcp, broker, telemetry, drop, grant or guard; `verdict` is allow, deny or note."""
        second = self._clock()
        if second - self._second >= 1:
            self.flush()
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND:
            key = (kind, verdict)
            self._suppressed[key] = self._suppressed.get(key, 0) + int(fields.get("count", 1))
            return
        self._lines += 1
        self._append({"kind": kind, "verdict": verdict, **fields})

    def flush(self) -> None:
        """Say what was suppressed since the last time."""
        suppressed, self._suppressed = self._suppressed, {}
        for (kind, verdict), count in suppressed.items():
            self._append({"kind": kind, "verdict": verdict, "rule": "suppressed", "count": count})

    def _append(self, fields: dict[str, Any]) -> None:
        line = json.dumps({"time": now(), "instance_id": self._instance_id, **fields}, ensure_ascii=True).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                # Half a line is worse than none: what comes after it could not be read.
                os.ftruncate(self._file.fileno(), size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # The disk is full or fails: the decision is counted, and said when there is room again.
            key = (str(fields["kind"]), str(fields["verdict"]))
            self._suppressed[key] = self._suppressed.get(key, 0) + int(fields.get("count", 1))
            return
        if size + len(line) > MAX_BYTES:
            self._file.close()
            self._path.rename(older(self._path))
            self._file = self._path.open("ab", buffering=0)
            self._path.chmod(0o600)

    def close(self) -> None:
        self.flush()
        self._file.close()


def older(path: Path) -> Path:
    """Where the lines before the current file's are."""
    return path.with_name(path.name + ".1")


def read_ledger(path: Path, *, follow: bool, pause: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """Every line that is kept, the oldest first; with `follow` those to come as well, across every change of the file.

    FileNotFoundError when there is no ledger. With `follow` it ends when the folder goes, with the instance.
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
                # After the look: what was written before the change of files is in this one.
                yield from _lines(file)


def _open_after(path: Path, read: int | None) -> list[BinaryIO]:
    """The files that come after the one with the inode `read`; empty when that one still is the current."""
    try:
        current = path.open("rb")
    except FileNotFoundError:
        return []  # gone, or between two names
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
    """Whole lines from here on. Half of one stays for the next time."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(at)
            return
        yield json.loads(line)
