"""The workload: an agent or a script that runs between the first gate and the others.

It runs in a separate session in the guest, and writes its output to a file there: a lost connection loses nothing, and
a later `attach` reads the same file. Output and exit code come from the guest and are not trusted.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ktrdr_vm.errors import GuestError, keep_end
from ktrdr_vm.guest.protocol import Guest, GuestTimeout
from ktrdr_vm.host.clock import now
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.model import WorkloadResult

# The end of the output is kept.
KEPT_OUTPUT = 64 * 1024
# Attempts to reconnect without a byte in between, after which the run ends.
_RECONNECTS = 5
# Seconds between two calls of `leave`.
_SLICE = 15.0
_LIMIT = 60.0

# In the home directory, which is on the disk: it survives a reboot of the guest, which the missing exit code shows
# then.
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
"""A guest whose connection is opened again after it was lost."""


@dataclass(frozen=True)
class Ending:
    """The end of a followed workload. `exit_code` is None if it was stopped by its limit or ended without one (a reboot
    of the guest).

    `unfinished`: it is still running, and `leave` ended the wait.
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
    """Run it as the unprivileged user of the guest until its end or its time limit. A failure is a result, not an
    error.

    With `again`, a running workload is followed instead of started. None if `leave`, which is called every few seconds,
    returned True.
    """
    started_at, began = now(), time.monotonic()
    tail = bytearray()

    def hear(data: bytes) -> None:
        tail.extend(data)
        # More than is kept, so that a secret at the cut is masked completely.
        del tail[: -2 * KEPT_OUTPUT]

    if not again or connect().run(_STATE, timeout=_LIMIT, max_output=64).stdout.strip() != b"running":
        _start(connect(), workload, environment, chdir)
    ending = follow(connect, mask=mask, on_output=on_output, timeout=workload.timeout, hear=hear, leave=leave)
    if ending.outcome == "unfinished":
        return None
    if ending.outcome == "timeout":
        with contextlib.suppress(GuestError):
            stop_workload(connect)
    return WorkloadResult(
        command=workload.command,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 3),
        stdout=mask(tail.decode("utf-8", "replace"))[-KEPT_OUTPUT:],
    )


def stop_workload(connect: Connect) -> None:
    """Kill it and what it started. Fine when it has ended."""
    connect().run(_KILL, timeout=_LIMIT)


def _start(guest: Guest, workload: Workload, environment: Mapping[str, str], chdir: str | None) -> None:
    words = " ".join(shlex.quote(word) for word in workload.command)
    started = guest.run(_START % words, environment=environment, chdir=chdir, timeout=_LIMIT)
    if started.exit_code != 0:
        raise GuestError(
            f"the workload could not be started: {keep_end(started.stderr.decode('utf-8', 'replace').strip(), 300)}",
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
    """Read the output of a workload from its beginning to its end, and reconnect if the connection is lost.

    `hear` gets the raw bytes, `on_output` whole lines with secrets masked. GuestError if there is no workload, or if
    the guest is lost.
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
                if (
                    guest.run(_FOLLOW % (seen + 1), timeout=min(left, _SLICE), max_output=0, on_output=take).exit_code
                    == 3
                ):
                    break
                said = connect().run(_STATE, timeout=_LIMIT, max_output=64).stdout.strip()
                if said != b"running":
                    code = int(said) if re.fullmatch(rb"[0-9]{1,3}", said) else None
                    return Ending("passed" if code == 0 else "failed", code)
            except GuestTimeout:
                # Only the read is interrupted; the next one begins where this one ended.
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
    """Passes on whole lines only, so that a secret in two parts is masked as well."""

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
