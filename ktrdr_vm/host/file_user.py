"""The user with whose permissions this thread opens files."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
# libc's own function changes the groups of all threads. The number is that of Linux on x86-64.
_SYS_SETGROUPS = 116
_own = threading.local()


def set_file_user(user: int, group: int) -> None:
    """Set the file system uid and gid of this thread, which the kernel uses for permissions of files only, and give it
    no supplementary groups: those of root open what group root may read or write. User 0 restores its groups."""
    # The groups are set as root: after the user, they could not be.
    if user != 0:
        if not hasattr(_own, "groups"):
            _own.groups = os.getgroups()
        _set_groups(())
        _LIBC.setfsgid(group)
        _LIBC.setfsuid(user)
    else:
        _LIBC.setfsuid(user)
        _LIBC.setfsgid(group)
        if hasattr(_own, "groups"):
            _set_groups(_own.groups)
            del _own.groups


def _set_groups(groups: Sequence[int]) -> None:
    numbers = (ctypes.c_uint32 * len(groups))(*groups)
    if _LIBC.syscall(_SYS_SETGROUPS, ctypes.c_size_t(len(groups)), numbers) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the groups of this thread cannot be set: {os.strerror(number)}")
