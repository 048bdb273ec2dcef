"""User namespaces, in which this process sees ids of the host that are not mapped as one."""

from __future__ import annotations

import functools
from pathlib import Path

# The kernel's overflowuid: every user who is not mapped, root of the host among them.
UNMAPPED = 65534


@functools.cache
def in_user_namespace() -> bool:
    """True in a world, and in any other user namespace that maps some ids only. Not to be asked before it is entered."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False  # no Linux
