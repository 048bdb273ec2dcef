"""Atomic replacement of files: a temporary file is synced and renamed, so that a crash leaves the old file or the new
one."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import HostError


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`, atomically and synced. HostError if that fails; the old file is kept then."""
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
            f"cannot write {path.name}: {error.strerror}",
            where=str(path.parent),
            hint="free space or make the directory writable",
        ) from error
