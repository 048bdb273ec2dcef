"""The time format of logs, ledger and reports, and the clock of expiries."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path


def now() -> str:
    """UTC, RFC 3339, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def boottime() -> float:
    """Seconds since the host booted: does not jump with the wall clock, and counts the time that the host was
    suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_boot_id() -> str:
    """The id of this boot; values of `boottime` are valid within one boot only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def later(seconds: float) -> str:
    """The time in that many seconds, in the format of `now`."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def has_passed(moment: str, boot: str, second: float) -> bool:
    """True if an expiry has passed: `second` of `boottime` within the boot `boot`, else `moment`, which `later` wrote.

    Within one boot, a wall clock that jumps changes nothing.
    """
    return boottime() >= second if boot == read_boot_id() else seconds_since(moment) > 0


def seconds_since(moment: str) -> float:
    """Seconds from a time that `now` wrote until now, by the wall clock."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
