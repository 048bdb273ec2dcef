"""Disks of images: an ext4 one from a directory, without mounting it, and a qcow2 one from a raw file."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.host import process

_TIMEOUT = 900.0
_NAMESPACE = uuid.UUID("6f0b6cc3-3f0b-4b39-9f6e-6b1f5f3a2d71")
_CHUNK = 1 << 22


def make_mke2fs_argv(root: Path, disk: Path, digest: str) -> tuple[str, ...]:
    """The identifiers derive from the digest of the recipe, so that builds are reproducible where that is cheap.

    `assume_storage_prezeroed`: the file is sparse, so nothing has to be written, and the guest's kernel has no
    tables to initialise in the background.
    """
    identifier = uuid.uuid5(_NAMESPACE, digest)
    return (
        "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", "ktrdr-root", "-U", str(identifier),
        "-E", f"hash_seed={identifier},assume_storage_prezeroed=1,root_owner=0:0",
        "-d", str(root), str(disk),
    )  # fmt: skip


def create_disk(root: Path, disk: Path, size: int, digest: str) -> None:
    """Write `root` into a new sparse raw file of `size` bytes."""
    with disk.open("xb") as file:
        file.truncate(size)
    process.run(make_mke2fs_argv(root, disk, digest), timeout=_TIMEOUT)


def convert_raw(source: Path, target: Path) -> None:
    """Write a raw disk as qcow2, without what it has of zeros. It is read as raw whatever it begins with."""
    process.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", source, target], timeout=_TIMEOUT)


def hash_file(place: Path, beat: Callable[[], None] | None = None) -> str:
    """The sha256 of a file. `beat` is called repeatedly."""
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if beat is not None:
                beat()
    return digest.hexdigest()
