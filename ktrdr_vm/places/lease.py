"""The lease of an attempt: a line that is appended at an interval. An attempt that cannot append for `grace` seconds
stops itself."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ktrdr_vm.host.clock import now
from ktrdr_vm.places.filenames import CANCEL, LEASE
from ktrdr_vm.places.request_state import find_pid_namespace

_POLL = 1.0


class Lease:
    """Appends in a thread until the end of the block. `stop` is called once, with the reason, if the attempt must end.

    Reasons: the lease was lost, the request was cancelled, or a newer attempt exists.
    """

    def __init__(
        self, request: Path, attempt: Path, grace: float, stop: Callable[[str], None], *, poll: float = _POLL
    ) -> None:
        self._request = request
        self._attempt = attempt
        self._grace = grace
        self._stop = stop
        self._poll = poll
        self._ended = threading.Event()
        self._appended = time.monotonic()
        self._reason = ""
        # Two threads: on a file system that is gone, a call may not return.
        self._threads = [
            threading.Thread(target=one, name="lease", daemon=True) for one in (self._append_always, self._watch)
        ]

    def __enter__(self) -> Lease:
        first: dict[str, object] = {
            "time": now(),
            "node": os.uname().nodename,
            "pid": os.getpid(),
            "pid_namespace": find_pid_namespace(),
        }
        if job := os.environ.get("SLURM_JOB_ID", ""):
            first["job"] = job[:20]
        self._append(first)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._threads[1].join(10)

    def _append(self, content: dict[str, object]) -> None:
        # Opened each time: on a shared file system that is gone, an open file may accept writes for a long time.
        descriptor = os.open(
            self._attempt / LEASE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(descriptor, (json.dumps(content) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._appended = time.monotonic()

    def _append_always(self) -> None:
        interval = min(10.0, self._grace / 4)
        while not self._ended.wait(self._poll):
            self._reason = self._reason or self._find_reason()
            if time.monotonic() - self._appended >= interval:
                with contextlib.suppress(OSError):
                    self._append({"time": now()})

    def _watch(self) -> None:
        while not self._ended.wait(self._poll):
            lost = time.monotonic() - self._appended > self._grace
            if self._reason or lost:
                return self._stop(
                    self._reason or f"it could not append to {self._attempt / LEASE} for {self._grace:g} s"
                )
        return None

    def _find_reason(self) -> str:
        if os.path.lexists(self._request / CANCEL):
            return "it was cancelled"
        if os.path.lexists(self._attempt.with_name(str(int(self._attempt.name) + 1))):
            return "a newer attempt of this request exists"
        return ""
