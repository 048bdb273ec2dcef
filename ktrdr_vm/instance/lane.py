"""Steps that run one after another in a thread of their own, in parallel with the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType


class Lane:
    """Use it in a `with`, which ends when the steps have ended. An error of the caller ends them after the current
    step."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lane")
        self._ended = threading.Event()
        self._work: Future[None] | None = None

    def __enter__(self) -> Lane:
        return self

    def begin(self, steps: Sequence[Callable[[], None]]) -> None:
        """Start the steps. Called once."""
        self._work = self._pool.submit(self._run, steps)

    def wait(self) -> None:
        """Return when all steps have ended; raise what one of them raised. Without steps it returns at once."""
        if self._work is not None:
            self._work.result()

    def _run(self, steps: Sequence[Callable[[], None]]) -> None:
        for step in steps:
            if self._ended.is_set():
                return
            step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """No step runs after the caller was interrupted: it would race the teardown that follows."""
        interrupted: BaseException | None = None
        if error is not None:
            self._ended.set()
        while self._work is not None and not self._work.done():
            try:
                wait([self._work])
            except BaseException as one:  # a signal: it ends the steps, and is raised when they have ended
                interrupted = one
                self._ended.set()
        self._pool.shutdown()
        if error is None and interrupted is not None:
            raise interrupted
        if error is None:
            self.wait()
