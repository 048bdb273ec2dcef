"""Answers of programs of this host, kept as long as the files from which they were made are unchanged.

Package clients need a tenth of a second or more of CPU time to report their configuration, QEMU twenty milliseconds to
report its version.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.durable import write_durably

# The resolution of file times in nanoseconds: a newer file may change again and keep its time.
_COARSE = 2_000_000_000
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Answers:
    """A folder of the state directory with one file for each name. A question is a JSON value that includes all input
    of the program."""

    folder: Path

    def find(self, name: str, question: object) -> Any:
        """The answer to the question; None if there is none, or if a path that it was made from has changed since."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with os.fdopen(_open_own(self.folder / name), "rb") as file:
                kept = json.loads(file.read(_MAX_BYTES))
            if kept["question"] == question and all(_describe(path) == was for path, was in kept["read"].items()):
                return kept["answer"]
        return None

    def keep(self, name: str, question: object, answer: object, read: Iterable[str], began: int) -> None:
        """Keep an answer that the program made from the paths `read`, which need not exist.

        `began` is the time before the question, in nanoseconds: nothing is kept if one of the paths is newer, or if the
        state directory does not exist or cannot be written.
        """
        with contextlib.suppress(OSError, HostError):
            paths = {path: _describe(path) for path in read}
            # Also of their folders: a path that is missing now may have existed when the program read it.
            newest = max(_find_change(one) for path in paths for one in (path, str(Path(path).parent)))
            if newest < began - _COARSE:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                kept = {"question": question, "answer": answer, "read": paths}
                write_durably(self.folder / name, json.dumps(kept).encode())


def _open_own(path: Path) -> int:
    """A descriptor of the file. OSError for a link, for a file of another user, and for one that others may change."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022:
        return descriptor
    os.close(descriptor)
    raise PermissionError(str(path))


def _describe(path: str) -> list[int] | None:
    """Values that change with the content of a file, or with the names in a folder; None if the path does not exist."""
    try:
        facts = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _find_change(path: str) -> int:
    described = _describe(path)
    return described[-1] if described else 0
