"""Files beneath a folder, component by component and without following any link.

Both sides are hostile here: names come from the guest or from a playbook of an untrusted branch, and the folder may hold
links that a workload made. So nothing is resolved by path: every step is an `openat` with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ktrdr_vm.guest.protocol import GuestRefusedError

MAX_COMPONENT = 255
MAX_PATH = 1024
MAX_DEPTH = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePathError(GuestRefusedError):
    """A name that leaves the folder it belongs in, or that is no ordinary file name."""


def check_name(name: str) -> str:
    """What is wrong with a relative name, or an empty text. `./` at the front and `/` at the end are fine."""
    parts = split_name(name)
    if name.startswith("/"):
        return "an absolute path"
    if not parts:
        return "an empty name"
    if ".." in parts:
        return "`..` in the path"
    if any(not character.isprintable() for character in name):
        return "a control character in the name"
    if len(os.fsencode(name)) > MAX_PATH:
        return f"a path longer than {MAX_PATH} bytes"
    if any(len(os.fsencode(part)) > MAX_COMPONENT for part in parts):
        return f"a name longer than {MAX_COMPONENT} bytes"
    return f"nested more than {MAX_DEPTH} folders deep" if len(parts) > MAX_DEPTH else ""


def split_name(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


@contextlib.contextmanager
def open_folder(root: Path, parts: list[str], *, create: bool = False, owner: tuple[int, int] | None = None) -> Iterator[int]:
    """A descriptor of a folder beneath `root`. With `create`, missing folders are made (0755, `owner`)."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
                    if owner is not None:
                        os.chown(part, *owner, dir_fd=descriptor, follow_symlinks=False)
            inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(place: Path, *, owner: tuple[int, int] | None = None) -> None:
    """Make a folder of the host's own, and those above it, as the owner's."""
    if not place.is_dir():
        make_folder(place.parent, owner=owner)
        place.mkdir(mode=0o755, exist_ok=True)
        if owner is not None:
            os.chown(place, *owner, follow_symlinks=False)


def open_beneath(root: Path, name: str) -> int:
    """A descriptor to read a regular file beneath `root`. UnsafePathError for a bad name or a link; OSError otherwise."""
    if wrong := check_name(name):
        raise UnsafePathError(f"{name[:200]!r} cannot be read: {wrong}", hint="name a file beneath the folder")
    *folders, last = split_name(name)
    try:
        with open_folder(root, folders) as folder:
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnsafePathError(f"{name!r} cannot be read: {error.strerror} (links are not followed)", hint="name a regular file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafePathError(f"{name!r} is not a regular file", hint="name a regular file")
    return descriptor


def remove_beneath(root: Path, name: str) -> None:
    """Take a file away that `create_beneath` made. Fine when it is gone."""
    *folders, last = split_name(name)
    with contextlib.suppress(OSError), open_folder(root, folders) as folder:
        os.unlink(last, dir_fd=folder)


def create_beneath(root: Path, name: str, *, owner: tuple[int, int] | None = None, replace: bool = False) -> int:
    """A descriptor to write a new file (0644, `owner`) beneath `root`; folders are made. With `replace`, an old one goes first."""
    if wrong := check_name(name):
        raise UnsafePathError(f"{name[:200]!r} cannot be written: {wrong}", hint="use a relative name without `..`")
    *folders, last = split_name(name)
    with open_folder(root, folders, create=True, owner=owner) as folder:
        if replace:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last, dir_fd=folder)
        descriptor = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    os.fchmod(descriptor, 0o644)
    if owner is not None:
        os.fchown(descriptor, *owner)
    return descriptor
