"""The users of this host as this process sees them: who may change a path, and whether it is in a user namespace."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

# The kernel's overflowuid: every user who is not mapped, root of the host among them.
UNMAPPED = 65534


def find_changeable(path: Path) -> str:
    """The first part of a path, from the top, that users other than root and this one may change; empty if there is
    none.

    A world-writable folder with the sticky bit, such as /tmp, is accepted, but its content is checked.
    """
    resolved = path.resolve()
    for part in (*reversed(resolved.parents), resolved):
        try:
            facts = part.lstat()
        except FileNotFoundError:
            return ""
        sticky = stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX and part != resolved
        if not is_trusted_owner(facts.st_uid) or (facts.st_mode & 0o022 and not sticky):
            return str(part)
    return ""


def is_trusted_owner(uid: int) -> bool:
    """True for root and this user. In a world root of the host is not told from others; entering it has checked
    before."""
    return uid in (0, os.geteuid()) or (uid == UNMAPPED and in_user_namespace())


@functools.cache
def in_user_namespace() -> bool:
    """True in a world, and in any other user namespace that maps some ids only. Remembered: whoever enters one clears
    the cache."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False  # no Linux
