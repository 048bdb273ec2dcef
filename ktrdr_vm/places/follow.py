"""Following a request: its states and the events of its attempts, by byte offset, until it ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.places.far_end import FarEnd
from ktrdr_vm.places.filenames import EVENTS
from ktrdr_vm.places.request_state import RequestState

# With the 0.2 s of the copy there, an event arrives within a second.
_POLL = 0.25
# A waiting request changes slowly, and the scheduler is asked each time.
_POLL_WAITING = 2.0
_MAX_LINE = 4 * 1024 * 1024
_MAX_TEXT = 8192


def follow(
    far: FarEnd,
    request_id: str,
    *,
    on_state: Callable[[RequestState], None],
    on_event: Callable[[dict[str, Any]], None],
    poll: float = _POLL,
) -> RequestState:
    """The last state. `on_state` gets each change of state, attempt or reason; `on_event` each event, from the
    beginning."""
    shown: tuple[object, ...] = ()
    reader = _Events(far, request_id)
    while True:
        state = far.state(request_id)
        if not state.has_ended and (now := (state.state, state.attempt, state.why)) != shown:
            shown = now
            on_state(state)
        if state.attempt:
            for event in reader.read(state.attempt):
                on_event(event)
        if state.has_ended:
            on_state(state)
            return state
        time.sleep(poll if state.state == "running" else max(poll, min(_POLL_WAITING, 4 * poll)))


class _Events:
    """The events of the newest attempt, from where the last call ended."""

    def __init__(self, far: FarEnd, request_id: str) -> None:
        self._far = far
        self._request_id = request_id
        self._attempt, self._offset, self._left = 0, 0, b""

    def read(self, attempt: int) -> Iterator[dict[str, Any]]:
        if attempt != self._attempt:
            self._attempt, self._offset, self._left = attempt, 0, b""
        while piece := self._far.read(self._request_id, attempt, EVENTS, self._offset):
            self._offset += len(piece)
            *lines, self._left = (self._left + piece).split(b"\n")
            if len(self._left) > _MAX_LINE:
                raise UsageError("an event is a line without an end", where=self._far.name, hint="check that host")
            for line in lines:
                if event := clean_event(line):
                    yield event


def clean_event(line: bytes) -> dict[str, Any]:
    """The scalars of an event, bounded; empty for a line that is not one."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        return {}
    clean: dict[str, Any] = {}
    for key, value in list(data.items())[:40]:
        if isinstance(value, str):
            clean[key] = value[:_MAX_TEXT]
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            clean[key] = value
    duration = clean.get("duration_s", 0)
    clean["duration_s"] = float(duration) if isinstance(duration, (int, float)) and abs(duration) < 1e9 else 0.0
    return clean
