"""A child process of the guard: started, monitored, and restarted with increasing pauses for as long as the guard runs.

Its standard error is copied to guard.log, with its name in front of each line, and the end of it is kept: it contains
the reason why the child does not serve. The number of restarts is not limited: the cause may pass, and until then no
traffic leaves the instance.
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

# Seconds: the pause after the second consecutive end, the longest pause, and the run time after which an end counts as
# the first one again.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
STEADY = 60.0
# Bytes of the standard error of one process: the maximum that is copied to guard.log, and the end of it that is kept.
_MOST_LOGGED = 256 * 1024
_KEPT = 2000
# Pieces of the standard error that are read at once: a child that always has more must not hold up the guard.
_MOST_PIECES = 16
# Calls of `on_readable` after the end of a child: more than a channel or a pipe can hold messages.
_MOST_AT_END = 4096
# Maximum bytes of a message from a child. The largest message is a packet for an escalation.
_MOST_SAID = 256 * 1024
# The first message of a child: it has dropped its privileges, and everything that it needs is available.
SERVES = b'{"serves": true}'


class Source(Protocol):
    """The socket or pipe on which a child sends its messages."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class StandardError:
    """The standard error of a child, a pipe: copied to the standard error of this process, which is guard.log. The end
    is kept."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name = name
        self._stream = stream
        self._kept = b""
        self._logged = 0
        os.set_blocking(stream.fileno(), False)

    def fileno(self) -> int:
        return self._stream.fileno()

    def read(self) -> None:
        """Copy the output that is available, at most 1 MiB at once."""
        with suppress(BlockingIOError, ValueError):
            for _ in range(_MOST_PIECES):
                if not (piece := os.read(self._stream.fileno(), 65536)):
                    return
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
        """The last line that is not blank."""
        lines = [line.strip() for line in self._kept.decode("utf-8", "backslashreplace").splitlines()]
        return next((line[:500] for line in reversed(lines) if line), "")


class SupervisedChild:
    """`start` returns the process, with a pipe as its standard error, and the source of its messages; `on_readable`
    reads the messages. True says that it has read some, and that there may be more.

    `proof` is called until it returns True: from then on the child serves, until it ends. `note` writes a sentence into
    the ledger.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], tuple[subprocess.Popen[bytes], Source]],
        on_readable: Callable[[], bool | None],
        proof: Callable[[], bool],
        selector: selectors.BaseSelector,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_polled: bool = False,
    ) -> None:
        """If `is_polled`, the source is not registered with the selector: the supervisor reads it at an interval of its
        own."""
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
        self._stderr: StandardError | None = None
        self._began = 0.0
        self._due = 0.0
        self._ends = 0
        self._proved = False
        self._said = ""

    @property
    def pid(self) -> int:
        """0 while no process runs."""
        return self._process.pid if self._process is not None else 0

    @property
    def seconds_to_start(self) -> float:
        """Seconds until it is to be restarted; 3600 while it runs."""
        return 3600.0 if self._process is not None else max(0.0, self._due - self._clock())

    def poll(self) -> None:
        """Detect its end, and start it when a start is due."""
        if self._process is not None and self._process.poll() is not None:
            # Messages that it sent before its end are processed: they are decisions that have no other record.
            for _ in range(_MOST_AT_END):
                if not self._on_readable():
                    break
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
        self._stderr = StandardError(self.name, self._process.stderr)
        if not self._is_polled:
            self._selector.register(self._source, selectors.EVENT_READ, self._take)
        self._selector.register(self._stderr, selectors.EVENT_READ, self._read_stderr)

    def _take(self) -> None:
        # Its end may have been detected after the selector reported its source as readable.
        if self._process is not None:
            self._on_readable()

    def _read_stderr(self) -> None:
        if self._process is None or self._stderr is None:
            return
        self._stderr.read()
        if self._process.poll() is not None:
            # The end of the process is processed here, because a pipe at its end stays readable for the selector.
            self.poll()

    def _forget(self, exit_code: int) -> None:
        assert self._source is not None and self._stderr is not None
        for one in (self._stderr,) if self._is_polled else (self._source, self._stderr):
            self._selector.unregister(one)
        self._source.close()
        self._stderr.close()
        self._process = None
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        self._fail(f"it ended with {how}" + (f": {self._stderr.last}" if self._stderr.last else ""))

    def _fail(self, said: str) -> None:
        lived = self._clock() - self._began
        self._ends = 1 if lived >= STEADY else self._ends + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._ends - 2, 30)) if self._ends > 1 else 0.0
        self._due = self._clock() + pause
        self._said = said
        again = f"in {pause:.1f} s" if pause else "at once"
        self._note(f"{self.name} ended and is started again {again}: {said}"[:600])

    def describe(self) -> dict[str, Any]:
        """For `status`: its pid, whether it serves, the number of consecutive ends, and, while it does not serve, the
        reason of the last end."""
        alive = self._process is not None and self._process.poll() is None
        # `proof` may wait for the child, and `status` waits for `proof`: it is not called again once it was True for
        # this process.
        self._proved = self._proved or (alive and self._proof())
        serves = alive and self._proved
        said = self._said or (self._stderr.last if self._stderr is not None else "")
        return {"pid": self.pid, "serves": serves, "ends": self._ends, "said": "" if serves else said}

    def kill(self) -> None:
        """Kill it; it is restarted."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Kill it; it is not restarted."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class ChannelChild(SupervisedChild):
    """A child that sends packets on a socket: the first one reports that it serves, and each other one is passed to
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

    def _receive(self) -> bool:
        """Process one message. An empty one means that the child has ended, which SIGCHLD reports as well."""
        assert isinstance(self._source, socket.socket)
        try:
            raw = self._source.recv(_MOST_SAID)
        except (BlockingIOError, ConnectionError):
            return False
        if raw == SERVES:
            self._serves = True
        elif raw:
            self._on_message(raw)
        return bool(raw)
