"""The user with whose permissions this thread opens files."""

from __future__ import annotations

import ctypes

_LIBC = ctypes.CDLL(None, use_errno=True)


def set_file_user(user: int, group: int) -> None:
    """Set the file system uid and gid of this thread, which the kernel uses for permissions of files only."""
    # The group is set as root: after the user, it could not be.
    if user != 0:
        _LIBC.setfsgid(group)
        _LIBC.setfsuid(user)
    else:
        _LIBC.setfsuid(user)
        _LIBC.setfsgid(group)
