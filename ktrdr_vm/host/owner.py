"""Who is behind this process, what is read with their rights, and which places only root can change."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)


def find_owner() -> tuple[int, int]:
    """The invoking person: who is behind sudo, else who runs this."""
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit() and os.environ.get("SUDO_GID", "").isdigit():
        return int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    return os.getuid(), os.getgid()


@contextlib.contextmanager
def reading_as(owner: tuple[int, int]) -> Iterator[None]:
    """Files are opened with the rights of `owner` (uid, gid) meanwhile, in this thread alone. Nothing changes for whom it is already.

    The kernel's identity for files: what root may and they may not is refused as it would be to them, folders on the way included.
    """
    if os.geteuid() != 0 or owner[0] == 0:
        yield
        return
    _LIBC.setfsgid(owner[1])
    _LIBC.setfsuid(owner[0])
    try:
        yield
    finally:
        _LIBC.setfsuid(0)
        _LIBC.setfsgid(os.getegid())


def may_read(facts: os.stat_result, owner: tuple[int, int]) -> bool:
    """True if `owner` may read a file by its mode. Supplementary groups are ignored: those of this thread are those of root."""
    if os.geteuid() != 0 or owner[0] == 0:
        return True
    bit = stat.S_IRUSR if facts.st_uid == owner[0] else stat.S_IRGRP if facts.st_gid == owner[1] else stat.S_IROTH
    return bool(facts.st_mode & bit)


def forbid_cores() -> None:
    """This process and what it starts write no memory to the disk when they crash: there are secrets in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
