"""A source of streams, read again and again by a thread of its own: one that takes long delays no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.monitoring.top.streams import Stream

Read = Callable[[], Sequence[Stream]]

# Seconds. Places are asked over SSH, and a scheduler behind them.
PLACES_EVERY = 10.0


class Source:
    """Reads every `every` seconds from `start` on. `on_read` and `on_problem` are called by the thread, the latter with
    a text of the same problem once."""

    def __init__(
        self,
        read: Read,
        every: float,
        on_read: Callable[[Sequence[Stream]], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._read, self._every = read, every
        self._on_read, self._on_problem = on_read, on_problem
        self._ended, self._wanted = threading.Event(), threading.Event()
        self._said = ""
        self.reads = 0
        """How often a result or a problem was passed on."""
        # A place that does not answer may keep it for minutes, and the program ends without it.
        self._thread = threading.Thread(target=self._run, daemon=True, name="top")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No result is passed on after the current one. Does not wait for it."""
        self._ended.set()
        self._wanted.set()

    def read_soon(self) -> None:
        """Read again without waiting for the rest of the time."""
        self._wanted.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wanted.clear()
            self._read_once()
            self._wanted.wait(self._every)

    def _read_once(self) -> None:
        try:
            found = self._read()
        except KtrdrError as error:
            self._say(f"{error.message}\nnext: {error.hint}" if error.hint else error.message)
        except OSError as error:
            self._say(str(error))
        else:
            self._said = ""
            if not self._ended.is_set():
                self._on_read(found)
                self.reads += 1

    def _say(self, text: str) -> None:
        if text != self._said and not self._ended.is_set():
            self._on_problem(text)
        self._said = text
        self.reads += 1
