"""Files that are replaced whole: written beside, synced, renamed, and the folder synced, so that a crash leaves the old or the new."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import HostError


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`, atomically and synced. Raises HostError when the disk refuses; the old file stays."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HostError(
            f"cannot write {path.name}: {error.strerror}", where=str(path.parent), hint="free space or make the directory writable"
        ) from error
