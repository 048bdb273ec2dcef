"""Processes on this host, found by their arguments and ended by their pidfd; neither a PID file nor a name alone is
trusted."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.identity import HOST_USERS
from ktrdr_vm.users import UNMAPPED, in_user_namespace

# QEMU needs the most time, to unmap the memory of a large guest.
END_LIMIT = 10.0


# On Debian, uids of people begin here (adduser.conf); those of the processes of instances are far above.
_PEOPLE = 1000


def find_processes(matches: Callable[[list[bytes]], bool]) -> list[int]:
    """The processes of this user, of system users and of instances with these arguments, beginning with the program.

    Processes of other people are ignored, because any process can have any arguments.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                user = entry.stat().st_uid
                if _is_somebody_else(user):
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if matches(words):
                found.append(int(entry.name))
    return found


def _is_somebody_else(user: int) -> bool:
    if in_user_namespace():
        # All mapped users belong to this person.
        return user == UNMAPPED
    return (user != os.geteuid() and _PEOPLE <= user < 60_000) or 65_536 <= user < HOST_USERS.first


def end_process(pid: int) -> None:
    """Kill the process and wait for its end."""
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
