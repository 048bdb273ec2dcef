"""The user who called this process, and reading and writing files with the permissions of that user."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterator

_NO_ID = (1 << 32) - 1


def find_owner() -> tuple[int, int]:
    """The invoking user: the caller of sudo, else the user of this process."""
    user, group = (_read_id(name) for name in ("SUDO_UID", "SUDO_GID"))
    if os.geteuid() == 0 and user is not None and group is not None:
        return user, group
    return os.getuid(), os.getgid()


def _read_id(variable: str) -> int | None:
    """The id in a variable of sudo; None for what is no id, among them the kernel's (uid_t) -1, which changes no
    owner."""
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_ID else None


@contextlib.contextmanager
def reading_as(owner: tuple[int, int]) -> Iterator[None]:
    """In the block, this thread opens files with the permissions of `owner` (uid, gid). No effect if the process is
    `owner`.

    It sets the file system uid and gid of the kernel, so that access is refused as for that user, parent folders
    included.
    """
    if os.geteuid() != 0 or owner[0] == 0:
        yield
        return
    # Imported late: most commands read nothing as another user.
    from ktrdr_vm.host.file_user import set_file_user

    try:
        set_file_user(*owner)
        yield
    finally:
        try:
            set_file_user(0, os.getegid())
        finally:
            # Again: an interrupt can end the first call before it has done anything.
            set_file_user(0, os.getegid())


def write_as_owner(path: os.PathLike[str], content: bytes) -> None:
    """Write a file that the invoking user has named, as that user, to whom it belongs then. Folders above it are
    created.

    Root would follow a link at its place to where only root may write.
    """
    # Imported late: the processes of the guard start without it.
    from pathlib import Path

    with reading_as(find_owner()):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)


def find_login(uid: int) -> dict[str, str]:
    """HOME and USER of a program that root runs as another user: those of root, as sudo sets them, would lead it to
    root's files. Empty if it runs as this user."""
    if os.geteuid() != 0 or uid == 0:
        return {}
    # Imported late: the start of the program reads no accounts.
    from ktrdr_vm.users import find_account_folder, name_user

    return {"HOME": find_account_folder(uid), "USER": name_user(uid)}


def may_read(facts: os.stat_result, owner: tuple[int, int]) -> bool:
    """True if `owner` may read a file by its mode. Supplementary groups are ignored: those of this thread are those of
    root."""
    if os.geteuid() != 0 or owner[0] == 0:
        return True
    bit = stat.S_IRUSR if facts.st_uid == owner[0] else stat.S_IRGRP if facts.st_gid == owner[1] else stat.S_IROTH
    return bool(facts.st_mode & bit)


def forbid_cores() -> None:
    """Disable core dumps for this process and its children, because their memory contains secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
