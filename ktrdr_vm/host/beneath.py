"""Files and folders beneath a root, opened component by component: no link is followed and no other mount is entered.

Names come from a guest, a profile or a playbook, and the folders may contain links that a workload or a branch made. So
nothing is resolved by path: every step is an `openat` with O_NOFOLLOW, and later steps use the descriptor. Only the
root itself is opened by its path, because a person named it or this program created it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError, UsageError

MAX_COMPONENT = 255
MAX_PATH = 1024
MAX_DEPTH = 32
_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = _ROOT | os.O_NOFOLLOW


class UnsafePathError(UsageError):
    """A name that leads out of its folder, or is not a valid file name."""


@dataclass(frozen=True)
class Place:
    """A file or folder with an untrusted name: `parts` beneath `root`, which a person named or the program created."""

    root: Path
    parts: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The path, for messages only. Files are opened from the root."""
        return self.root.joinpath(*self.parts)

    @property
    def parent(self) -> Place:
        return Place(self.root, self.parts[:-1])

    def join(self, name: str) -> Place:
        """The place of a relative name from here. UnsafePathError if it leads out."""
        if name.startswith("/") or ".." in split_name(name):
            raise UnsafePathError(
                f"{name[:200]!r} leads out of its folder", where=str(self.path), hint="use a relative path without `..`"
            )
        return Place(self.root, (*self.parts, *split_name(name)))


def find_place(path: Path, roots: Sequence[Path]) -> Place:
    """The place of a path: beneath the first of `roots` that contains it as written, else in its own folder, whose
    links are followed."""
    plain = Path(os.path.normpath(path))
    for root in roots:
        if plain.is_relative_to(root):
            return Place(root, plain.relative_to(root).parts)
    return Place(path.parent.resolve(), (path.name,))


def check_name(name: str) -> str:
    """The error in a relative name, or an empty text. A leading `./` and a trailing `/` are allowed."""
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
def open_folder(root: Path | Place, parts: Sequence[str] = (), *, create: bool = False) -> Iterator[int]:
    """A descriptor of a folder beneath `root`. With `create`, missing folders are created (0755).

    OSError of `openat`: ELOOP or ENOTDIR for a link. UnsafePathError if another file system is mounted in the path.
    """
    place = root if isinstance(root, Place) else Place(root)
    descriptor = os.open(place.root, _ROOT)
    try:
        mount = find_mount_id(descriptor)
        for part in (*place.parts, *parts):
            if part in ("", ".", ".."):
                raise UnsafePathError(
                    f"{part!r} is not the name of a folder",
                    where=str(place.path),
                    hint="use names without `/` and `..`",
                )
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
            descriptor = _step(descriptor, part, mount, place)
        yield descriptor
    finally:
        os.close(descriptor)


def _step(descriptor: int, part: str, mount: str, place: Place) -> int:
    """Open the next folder. If this fails, the descriptor of the parent stays open, and its owner closes it."""
    inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
    if find_mount_id(inner) != mount:
        os.close(inner)
        raise HostError(
            f"another file system is mounted at {part}",
            where=str(place.path),
            hint="name a folder on the file system of its root",
        )
    os.close(descriptor)
    return inner


def find_mount_id(descriptor: int) -> str:
    """The id of the mount of an open file. Two bind mounts of one file system are two mounts."""
    if sys.platform != "linux":
        # A client on another system has no instances; only the file system can be determined there.
        return str(os.fstat(descriptor).st_dev)
    # Read without a file object: this is done for every component of every path.
    facts = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in os.read(facts, 4096).split(b"\n"):
            if line.startswith(b"mnt_id:"):
                return line.split()[1].decode("ascii")
    finally:
        os.close(facts)
    raise HostError(
        "the kernel does not report the mount of a file",
        where="/proc/self/fdinfo",
        hint="Linux 3.15 or later is needed",
    )


@contextlib.contextmanager
def open_named_folder(place: Place, what: str) -> Iterator[int]:
    """A descriptor of a folder that a profile names, or UnsafePathError with the reason. `what` is the key of the
    profile."""
    try:
        folder = contextlib.ExitStack()
        descriptor = folder.enter_context(open_folder(place))
    except OSError as error:
        raise UnsafePathError(
            f"{what}: {'/'.join(place.parts) or '.'} cannot be opened as a folder: {error.strerror} (links are not"
            " followed)",
            where=str(place.path),
            hint=f"name a folder beneath {place.root}, without links in its path",
        ) from None
    with folder:
        yield descriptor


def open_file(root: Path | Place, name: str = "") -> int:
    """A descriptor to read a regular file beneath `root`. FileNotFoundError; UnsafePathError for a bad name, a link or
    another mount."""
    place = root if isinstance(root, Place) else Place(root)
    if name:
        if wrong := check_name(name):
            raise UnsafePathError(f"{name[:200]!r} cannot be read: {wrong}", hint="name a file beneath the folder")
        place = Place(place.root, (*place.parts, *split_name(name)))
    shown = name or "/".join(place.parts)
    if not place.parts:
        raise UnsafePathError("the path is a folder and not a file", where=str(place.path), hint="name a regular file")
    try:
        with open_folder(place.parent) as folder:
            descriptor = open_regular(place.parts[-1], folder)
            mounted = find_mount_id(descriptor) != find_mount_id(folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnsafePathError(
            f"{shown!r} cannot be read: {error.strerror} (links are not followed)", hint="name a regular file"
        ) from None
    if mounted:
        os.close(descriptor)
        raise UnsafePathError(
            f"another file is mounted at {shown!r}", hint="name a file on the file system of its root"
        )
    return descriptor


def open_regular(name: str, folder: int) -> int:
    """A descriptor to read a regular file in an open folder. OSError for a link and for anything but a regular file."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "it is not a regular file", name)
    return descriptor


def remove_file(root: Path, name: str) -> None:
    """Remove a file that `create_file` created; idempotent."""
    *folders, last = split_name(name)
    with contextlib.suppress(OSError), open_folder(root, folders) as folder:
        os.unlink(last, dir_fd=folder)


def create_file(root: Path, name: str, *, replace: bool = False) -> int:
    """A descriptor to write a new file (0644) beneath `root`; folders are created. With `replace`, an old one is
    removed first."""
    if wrong := check_name(name):
        raise UnsafePathError(f"{name[:200]!r} cannot be written: {wrong}", hint="use a relative path without `..`")
    *folders, last = split_name(name)
    with open_folder(root, folders, create=True) as folder:
        if replace:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last, dir_fd=folder)
        descriptor = os.open(
            last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder
        )
    os.fchmod(descriptor, 0o644)
    return descriptor
