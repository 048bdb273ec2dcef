"""Processes that run on this host, found by their arguments and ended by their handle: no PID file is trusted, and no name alone."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

# QEMU unmapping a large guest is the slow case.
END_LIMIT = 10.0


# Users of people begin here on Debian (adduser.conf); those that an instance's processes have are far above.
_PEOPLE, _INSTANCES = 1000, 1_900_000_000


def find_processes(matches: Callable[[list[bytes]], bool]) -> list[int]:
    """The processes of this user, of the system's users and of instances whose arguments, the program first, are such.

    Anybody may give a process any arguments: what another person runs is never taken for one of ours.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                user = entry.stat().st_uid
                if (user != os.geteuid() and _PEOPLE <= user < 60_000) or 65_536 <= user < _INSTANCES:
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we looked
            if matches(words):
                found.append(int(entry.name))
    return found


def end_process(pid: int) -> None:
    """End the process and wait until the kernel has let go of it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        # A pidfd becomes readable when its process has ended.
        select.select([handle], [], [], END_LIMIT)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
