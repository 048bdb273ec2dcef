"""Removal of folders whose content another user made: of any depth, without following links.

`shutil.rmtree` calls itself for each level and holds it open. A folder of a thousand levels, which any user can make,
ends it with a RecursionError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

# Folders in one tree. Whoever made it may add some during the removal.
_MOST = 1_000_000


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it. FileNotFoundError if there is none; OSError if something remains."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree_at(path.name, parent)
    finally:
        os.close(parent)


def remove_tree_at(name: str, parent: int) -> None:
    """The same for the folder `name` in an open folder. A folder at a lower level is moved to the top before it is
    emptied, so that two folders are open at a time."""
    top = _open_folder(name, parent)
    try:
        token = secrets.token_hex(8)
        waiting = _remove_files(top)
        made = 0
        while waiting:
            one = waiting.pop()
            folder = _open_folder(one, top)
            try:
                for inner in _remove_files(folder):
                    made += 1
                    if made > _MOST:
                        raise OSError(errno.EMLINK, "it has too many folders", name)
                    moved = f".{token}-{made}"
                    os.rename(inner, moved, src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(moved)
            finally:
                os.close(folder)
            os.rmdir(one, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _open_folder(name: str, parent: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _remove_files(folder: int) -> list[str]:
    """Remove everything but folders that are not empty, and return their names."""
    left = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
                continue
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                left.append(name)
    return left
