"""The pages of a file that are in the page cache, and reading ahead of those that a process will need.

The first fork after a reboot faults on each page of the template's memory that it touches, with one read of the disk
for each. After one such fork the needed pages are known: those of the file that are in the cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
from itertools import groupby
from pathlib import Path

Ranges = list[tuple[int, int]]
"""Offsets and lengths in bytes, ascending."""

# With more of the data in the cache, more than one fork or a write of the file has filled it.
_MOST_OF_DATA = 0.6
_LOWEST_BIT = bytes(state & 1 for state in range(256))
_LIBC = ctypes.CDLL(None, use_errno=True)


def find_cached(path: Path) -> bytes:
    """One byte for each page of the file, 1 if the page cache has it. OSError if this user is not permitted to know it,
    or if the file does not exist."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return b""
        # mincore needs an address: the mapping is private, because the file is open for reading only.
        with mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
            states = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(view)
            try:
                if _LIBC.mincore(ctypes.byref(start), ctypes.c_size_t(size), states) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(path))
            finally:
                del start
    return bytes(states).translate(_LOWEST_BIT)


def remember_cached(path: Path, record: Path) -> bool:
    """Record the pages of the file that are in the cache. Returns False if there is a record, or if they are more than
    one process can have needed.

    Several processes may do this at once. A failed write is ignored, because nothing depends on the record.
    """
    if record.exists():
        return False
    try:
        states, data = find_cached(path), path.stat().st_blocks * 512
    except OSError:
        return False
    if not 0 < states.count(1) * mmap.PAGESIZE < _MOST_OF_DATA * data:
        return False
    ranges: Ranges = []
    page = 0
    for cached, group in groupby(states):
        count = sum(1 for _ in group)
        if cached:
            ranges.append((page * mmap.PAGESIZE, count * mmap.PAGESIZE))
        page += count
    mine = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        mine.write_text(json.dumps(ranges))
        mine.rename(record)
    except OSError:
        with contextlib.suppress(OSError):
            mine.unlink(missing_ok=True)
        return False
    return True


def read_ahead(path: Path, record: Path) -> int:
    """Let the kernel begin to read the recorded pages of the file. Returns their size in bytes, 0 without a record."""
    try:
        ranges = json.loads(record.read_bytes())
        with path.open("rb") as file:
            for offset, length in ranges:
                os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
    except (OSError, ValueError, TypeError, OverflowError):
        with contextlib.suppress(OSError):
            # An invalid record is written again by the next fork.
            record.unlink(missing_ok=True)
        return 0
    return sum(length for _, length in ranges)
