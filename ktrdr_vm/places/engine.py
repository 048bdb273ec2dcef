"""Engines: what starts the attempts of requests. This one starts a process that is detached from its caller."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host import process
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.places.filenames import STARTED
from ktrdr_vm.places.request import Request
from ktrdr_vm.places.request_state import RequestState, read_json
from ktrdr_vm.places.secret_values import Values, open_pipe
from ktrdr_vm.places.spool import Spool

NOT_LISTED = "squeue does not list it"
"""Why a request waits whose job the scheduler has no longer."""


class Engine(Protocol):
    """Starts, explains and cancels. Every method may be repeated with the same result."""

    is_here: bool
    """True if its runs are on this host."""

    def start(self, spool: Spool, requests: Sequence[Request], values: Mapping[str, Values]) -> None:
        """Start requests that were not started yet. `values` are those of the secrets that come with a request, by its
        id."""

    def explain(self, spool: Spool, states: Sequence[RequestState]) -> dict[str, str]:
        """Why each request that waits has not begun, by its id, as far as the engine says it."""

    def cancel(self, spool: Spool, state: RequestState) -> None:
        """Stop a request that waits or runs, which is marked as cancelled already."""

    def find_way(self, spool: Spool, request_id: str) -> tuple[str, ...]:
        """Words before a program that let it run where the newest attempt of a request runs; none if that is this
        host."""

    def render_script(self, spool: Spool, requests: Sequence[Request]) -> str:
        """What `start` would give to a scheduler. UsageError if there is none."""

    def describe(self) -> dict[str, Any]:
        """Facts of the engine, for `places check`."""

    def list_nodes(self) -> list[str]:
        """The hosts on which requests run, by name; one empty name if that is this host."""

    def find_missing(self) -> dict[str, str]:
        """What the engine lacks for runs, by name; asked only by `places check`."""


class DetachedEngine:
    """Starts each request at once, as a process in a session of its own. `program` is `ktrdr-vm` as words."""

    is_here = True

    def __init__(self, program: Sequence[str]) -> None:
        self._program = tuple(program)

    def start(self, spool: Spool, requests: Sequence[Request], values: Mapping[str, Values]) -> None:
        for request in requests:
            folder = spool.request(request.request_id)
            if read_json(folder / STARTED) or spool.count_attempts(request.request_id):
                continue
            mark_started(folder, kind="process")
            sent = values.get(request.request_id)
            with contextlib.ExitStack() as stack:
                log = stack.enter_context(open(folder / "output.log", "ab", opener=_open_private))
                pipe = open_pipe(sent) if sent else None
                if pipe is not None:
                    stack.callback(os.close, pipe)
                # It has the environment of its user, for the sources of secrets that its owner allows, and outlives
                # this process.
                process.start(
                    [*self._program, "run-request", *(["--values"] if sent else []), str(folder)],
                    environment=dict(os.environ),
                    streams=process.Streams(subprocess.DEVNULL if pipe is None else pipe, log, log),
                    cwd=Path("/"),
                )

    def explain(self, spool: Spool, states: Sequence[RequestState]) -> dict[str, str]:
        return {}

    def cancel(self, spool: Spool, state: RequestState) -> None:
        """An attempt that runs polls for the mark, also one that began since its state was read, and leaves its
        evidence. One that waits is not going to begin, because it reads the mark first."""
        if state.state == "waiting" and spool.count_attempts(state.request_id) == state.attempt:
            spool.end_early(state.request_id)

    def find_way(self, spool: Spool, request_id: str) -> tuple[str, ...]:
        return ()

    def render_script(self, spool: Spool, requests: Sequence[Request]) -> str:
        raise UsageError("this place has no script", where="submit --script", hint="only a place of kind slurm has one")

    def describe(self) -> dict[str, Any]:
        return {"engine": "process"}

    def list_nodes(self) -> list[str]:
        return [""]

    def find_missing(self) -> dict[str, str]:
        return {}


def mark_started(folder: Path, **content: Any) -> None:
    """Record that a request was started, and by what."""
    write_durably(folder / STARTED, (json.dumps({"at": time.time(), **content}) + "\n").encode())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
