"""Copies the events and the ledger of a run to the folder of its attempt, while they are written."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.runs import MAX_LINE, FinishedRun
from ktrdr_vm.places.filenames import EVENTS, LEDGER
from ktrdr_vm.report.mask import mask_values
from ktrdr_vm.run.listener import Listener

_POLL = 0.2


class Mirror(Listener):
    """A listener of a run that copies in a thread, from `started` to `finish`. Only whole lines are copied, secrets
    masked."""

    def __init__(self, attempt: Path, ledger: Path) -> None:
        self._attempt = attempt
        self._ledger = ledger
        self._mask: Callable[[str], str] = str
        self._open: dict[str, tuple[IO[bytes], Callable[[bytes], bytes]]] = {}
        self._left: dict[str, bytes] = {}
        self._unwritten: dict[str, bytes] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.run: Path | None = None

    def started(self, directory: Path, mask: Callable[[str], str]) -> None:
        self.run, self._mask = directory, mask
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        self._thread.start()

    def note(self, text: str) -> None:
        self._append(EVENTS, (json.dumps({"event": "note", "text": self._mask(text)}) + "\n").encode())

    def finish(self) -> None:
        """Copy what is left, and stop."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(30)

    def _follow(self) -> None:
        while not self._ended.wait(_POLL):
            self._copy()
        self._copy()
        for file, _ in self._open.values():
            file.close()

    def _copy(self) -> None:
        assert self.run is not None
        if EVENTS not in self._open:
            with contextlib.suppress(OSError, KtrdrError):
                self._open[EVENTS] = (FinishedRun(self.run).open(EVENTS), bytes)
        if LEDGER not in self._open:
            with contextlib.suppress(OSError):
                self._open[LEDGER] = (self._ledger.open("rb"), self._mask_row)
        for name, (file, change) in self._open.items():
            while data := file.readline(MAX_LINE):
                line = self._left.pop(name, b"") + data
                if not line.endswith(b"\n"):
                    self._left[name] = line[-MAX_LINE:]
                    break
                self._append(name, change(line))

    def _mask_row(self, line: bytes) -> bytes:
        """A row of the ledger as the run directory will have it; nothing for a line that is not one."""
        try:
            return (json.dumps(mask_values(json.loads(line), self._mask)) + "\n").encode()
        except (ValueError, RecursionError):
            return b""

    def _append(self, name: str, data: bytes) -> None:
        """Append to a file of the attempt. What cannot be written is kept, and written with the next line."""
        data = self._unwritten.pop(name, b"") + data
        try:
            descriptor = os.open(
                self._attempt / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
        except OSError:
            self._unwritten[name] = data[-MAX_LINE:]
