"""The workload: what an agent or a script does between the first gate and the others.

It runs in a session of its own in the guest, with its output in a file there: a lost connection loses nothing, and whoever comes
later (`attach`) reads the same file. What the guest says about it (output, exit code) is the guest's word.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.protocol import Guest, GuestTimeout
from ktrdr_vm.host.clock import now
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.model import WorkloadResult

# What matters of a long run is its end.
KEPT_OUTPUT = 64 * 1024
# How often a lost connection is made again without a byte in between. A guest that is gone ends the run.
_RECONNECTS = 5
# How often it is asked whether anybody still waits.
_SLICE = 15.0
_LIMIT = 60.0

# In the user's home, which is on the disk: a reboot of the guest leaves it, and the missing exit code then says what happened.
_PLACE = '"$HOME/.ktrdr-workload"'
_START = f"""set -eu
umask 077
rm -rf {_PLACE}
mkdir {_PLACE}
: > {_PLACE}/output
PLACE={_PLACE} setsid sh -c 'echo $$ > "$PLACE/pid"; place=$PLACE; unset PLACE; "$@" >> "$place/output" 2>&1 < /dev/null;
  echo $? > "$place/exit.new"; mv "$place/exit.new" "$place/exit"' ktrdr-workload %s > /dev/null 2>&1 < /dev/null &
i=0
while [ ! -s {_PLACE}/pid ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done
"""
_FOLLOW = f"""cd {_PLACE} || exit 3
tail -c +%d -s 0.2 -f --pid="$(cat pid)" output
"""
_STATE = f"""cat {_PLACE}/exit 2>/dev/null && exit
kill -0 "$(cat {_PLACE}/pid)" 2>/dev/null && echo running || echo gone
"""
_KILL = f"""p=$(cat {_PLACE}/pid) && [ "$p" -gt 1 ] || exit 0
kill -TERM -- -"$p" 2>/dev/null; pkill -TERM -s "$p" 2>/dev/null; sleep 1
kill -KILL -- -"$p" 2>/dev/null; pkill -KILL -s "$p" 2>/dev/null; true
"""

Connect = Callable[[], Guest]
"""A guest over a connection that lives: the same one while it does, a new one when it was lost."""


@dataclass(frozen=True)
class Ending:
    """How a followed workload ended. `exit_code` is None when it was stopped by its limit, or never said one (the guest rebooted).

    `unfinished`: nobody waits for it any longer, and it goes on.
    """

    outcome: Literal["passed", "failed", "timeout", "unfinished"]
    exit_code: int | None


def run_workload(
    connect: Connect,
    workload: Workload,
    *,
    environment: Mapping[str, str],
    chdir: str | None,
    mask: Callable[[str], str],
    on_output: Callable[[bytes], None],
    again: bool = False,
    leave: Callable[[], bool] = lambda: False,
) -> WorkloadResult | None:
    """Run it as the guest's unprivileged user until it ends or its time is over. A failure is a result, not an error.

    With `again` one that still runs is taken up instead of being started. None when `leave` said, every few seconds asked, that nobody
    waits for it any longer.
    """
    started_at, began = now(), time.monotonic()
    tail = bytearray()

    def hear(data: bytes) -> None:
        tail.extend(data)
        # More than is kept, so that a secret at the cut is still whole when it is masked.
        del tail[: -2 * KEPT_OUTPUT]

    if not again or connect().run(_STATE, timeout=_LIMIT, max_output=64).stdout.strip() != b"running":
        _start(connect(), workload, environment, chdir)
    ending = follow(connect, mask=mask, on_output=on_output, timeout=workload.timeout, hear=hear, leave=leave)
    if ending.outcome == "unfinished":
        return None
    if ending.outcome == "timeout":
        with contextlib.suppress(GuestError):
            connect().run(_KILL, timeout=_LIMIT)
    return WorkloadResult(
        command=workload.command,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 3),
        stdout=mask(tail.decode("utf-8", "replace"))[-KEPT_OUTPUT:],
    )


def _start(guest: Guest, workload: Workload, environment: Mapping[str, str], chdir: str | None) -> None:
    words = " ".join(shlex.quote(word) for word in workload.command)
    started = guest.run(_START % words, environment=environment, chdir=chdir, timeout=_LIMIT)
    if started.exit_code != 0:
        raise GuestError(
            f"the workload could not be started: {started.stderr.decode('utf-8', 'replace')[-300:].strip()}",
            where="workload",
            hint="the image requires setsid (util-linux), a writable home directory and free disk space",
        )


def follow(
    connect: Connect,
    *,
    mask: Callable[[str], str],
    on_output: Callable[[bytes], None],
    timeout: float,
    hear: Callable[[bytes], None] = lambda _data: None,
    leave: Callable[[], bool] = lambda: False,
) -> Ending:
    """Read a workload's output from its beginning until it ends, through lost connections.

    `hear` gets the bytes as they are, `on_output` whole lines with secrets masked. GuestError when there is no workload, or the guest is
    lost for good.
    """
    deadline = time.monotonic() + timeout
    lines = _MaskedLines(mask, on_output)
    seen, failures = 0, 0

    def take(data: bytes) -> None:
        nonlocal seen, failures
        seen, failures = seen + len(data), 0
        hear(data)
        lines.feed(data)

    try:
        while True:
            try:
                guest = connect()
                left = max(deadline - time.monotonic(), 0.05)
                if leave():
                    return Ending("unfinished", None)
                if guest.run(_FOLLOW % (seen + 1), timeout=min(left, _SLICE), max_output=0, on_output=take).exit_code == 3:
                    break
                said = connect().run(_STATE, timeout=_LIMIT, max_output=64).stdout.strip()
                if said != b"running":
                    code = int(said) if re.fullmatch(rb"[0-9]{1,3}", said) else None
                    return Ending("passed" if code == 0 else "failed", code)
            except GuestTimeout:
                # Only the reading is cut off; the next slice begins where this one ended.
                if time.monotonic() >= deadline:
                    return Ending("timeout", None)
            except GuestError:
                failures += 1
                if failures > _RECONNECTS:
                    raise
    finally:
        lines.close()
    raise GuestError("no workload was started in this instance", where="workload", hint="its profile has no workload")


class _MaskedLines:
    """Whole lines only: a secret that arrives in two pieces is masked as well."""

    def __init__(self, mask: Callable[[str], str], on_output: Callable[[bytes], None]) -> None:
        self._mask = mask
        self._on_output = on_output
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        self._pending.extend(data)
        self._show(self._pending.rfind(b"\n") + 1 or (len(self._pending) if len(self._pending) > KEPT_OUTPUT else 0))

    def close(self) -> None:
        self._show(len(self._pending))

    def _show(self, count: int) -> None:
        if count:
            self._on_output(self._mask(self._pending[:count].decode("utf-8", "replace")).encode())
            del self._pending[:count]
