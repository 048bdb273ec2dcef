"""A child of the guard: started, heard, and started again more and more slowly for as long as the guard lives.

What it writes on its standard error goes into guard.log with its name in front, and the end of it is kept: it says why
the child does not serve. A child is never given up: what makes it end may pass, and until then nothing leaves.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol

from ktrdr_vm.errors import KtrdrError

# Seconds: the pause after a second end in a row, the longest one, and how long a child must have lived for its end to
# be a first one.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
STEADY = 60.0
# Bytes of one life that are written to guard.log, and of its end that are kept.
_MOST_LOGGED = 256 * 1024
_KEPT = 2000
# Bytes of a child's message: a packet for an escalation is the largest.
_MOST_SAID = 256 * 1024
# A child's first message: it has given up its privilege, and what it needs is there.
SERVES = b'{"serves": true}'


class Source(Protocol):
    """What a child speaks on: a socket or a pipe."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class LastWords:
    """A child's standard error, a pipe: passed on to guard.log, which is this process's own, and the end of it kept."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name = name
        self._stream = stream
        self._kept = b""
        self._logged = 0
        os.set_blocking(stream.fileno(), False)

    def fileno(self) -> int:
        return self._stream.fileno()

    def read(self) -> None:
        """Take what is there."""
        with suppress(BlockingIOError, ValueError):
            while piece := os.read(self._stream.fileno(), 65536):
                self._kept = (self._kept + piece)[-_KEPT:]
                if self._logged < _MOST_LOGGED:
                    self._logged += len(piece)
                    lines = piece.decode("utf-8", "backslashreplace").rstrip("\n").split("\n")
                    os.write(2, "".join(f"{self._name}: {line}\n" for line in lines).encode())

    def close(self) -> None:
        self.read()
        self._stream.close()

    @property
    def last(self) -> str:
        """The last line that is no blank one."""
        lines = [line.strip() for line in self._kept.decode("utf-8", "backslashreplace").splitlines()]
        return next((line[:500] for line in reversed(lines) if line), "")


class SupervisedChild:
    """`start` returns the process, with a pipe as its standard error, and what it speaks on; `on_readable` takes what
    it says.

    `proof` is asked until it says True: then the child serves, as long as it lives. `note` writes a sentence into the
    ledger.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], tuple[subprocess.Popen[bytes], Source]],
        on_readable: Callable[[], None],
        proof: Callable[[], bool],
        selector: selectors.BaseSelector,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_polled: bool = False,
    ) -> None:
        """One that `is_polled` is not heard when it speaks: whoever supervises it asks what it has said, as often as is
        good."""
        self.name = name
        self._is_polled = is_polled
        self._start = start
        self._on_readable = on_readable
        self._proof = proof
        self._selector = selector
        self._note = note
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._source: Source | None = None
        self._words: LastWords | None = None
        self._began = 0.0
        self._due = 0.0
        self._ends = 0
        self._proved = False
        self._said = ""

    @property
    def pid(self) -> int:
        """0 while it is not there."""
        return self._process.pid if self._process is not None else 0

    @property
    def seconds_to_start(self) -> float:
        """Until it is to be started again; a long time while it lives."""
        return 3600.0 if self._process is not None else max(0.0, self._due - self._clock())

    def poll(self) -> None:
        """Notice its end, and start it when that is due."""
        if self._process is not None and self._process.poll() is not None:
            # What it still said counts.
            self._on_readable()
            self._forget(self._process.returncode)
        if self._process is None and self._clock() >= self._due:
            self._begin()

    def _begin(self) -> None:
        self._began, self._proved = self._clock(), False
        try:
            self._process, self._source = self._start()
        except (KtrdrError, OSError) as error:
            self._fail(f"it cannot be started: {error}")
            return
        assert self._process.stderr is not None
        self._words = LastWords(self.name, self._process.stderr)
        if not self._is_polled:
            self._selector.register(self._source, selectors.EVENT_READ, self._take)
        self._selector.register(self._words, selectors.EVENT_READ, self._listen)

    def _take(self) -> None:
        # Its end may have been noticed since the selector said that it has something to say.
        if self._process is not None:
            self._on_readable()

    def _listen(self) -> None:
        if self._process is None or self._words is None:
            return
        self._words.read()
        if self._process.poll() is not None:
            # Its pipe is at its end and would be readable for ever.
            self.poll()

    def _forget(self, exit_code: int) -> None:
        assert self._source is not None and self._words is not None
        for one in (self._words,) if self._is_polled else (self._source, self._words):
            self._selector.unregister(one)
        self._source.close()
        self._words.close()
        self._process = None
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        self._fail(f"it ended with {how}" + (f": {self._words.last}" if self._words.last else ""))

    def _fail(self, said: str) -> None:
        lived = self._clock() - self._began
        self._ends = 1 if lived >= STEADY else self._ends + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._ends - 2, 30)) if self._ends > 1 else 0.0
        self._due = self._clock() + pause
        self._said = said
        again = f"in {pause:.1f} s" if pause else "at once"
        self._note(f"{self.name} ended and is started again {again}: {said}"[:600])

    def describe(self) -> dict[str, Any]:
        """For `status`: its pid, whether it serves, how often it has ended in a row, and why, in its own last words."""
        alive = self._process is not None and self._process.poll() is None
        # A proof may wait for the child, and this for it: one is enough for each of its lives.
        self._proved = self._proved or (alive and self._proof())
        serves = alive and self._proved
        said = self._said or (self._words.last if self._words is not None else "")
        return {"pid": self.pid, "serves": serves, "ends": self._ends, "said": "" if serves else said}

    def kill(self) -> None:
        """It is started again."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """For good."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class ChannelChild(SupervisedChild):
    """A child that speaks in packets on a socket: the first one says that it serves, each other one goes to
    `on_message`."""

    def __init__(
        self,
        name: str,
        start: Callable[[], tuple[subprocess.Popen[bytes], socket.socket]],
        on_message: Callable[[bytes], None],
        selector: selectors.BaseSelector,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, start, self._receive, lambda: self._serves, selector, note, clock)
        self._on_message = on_message
        self._serves = False

    def _begin(self) -> None:
        self._serves = False
        super()._begin()

    def _receive(self) -> None:
        """Take one message. Without one it has ended, which SIGCHLD says too."""
        assert isinstance(self._source, socket.socket)
        try:
            raw = self._source.recv(_MOST_SAID)
        except (BlockingIOError, ConnectionError):
            return
        if raw == SERVES:
            self._serves = True
        elif raw:
            self._on_message(raw)
