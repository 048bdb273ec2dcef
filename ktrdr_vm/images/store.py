"""Images on disk, each in a directory named by its digest. A finished directory is renamed into place, so images are
always complete.

<root>/<digest>/disk.raw or disk.qcow2   the backing file of overlays, read-only
                vmlinuz, initrd          for direct kernel boot
                manifest.json            its sources and versions
<root>/.lock-<digest>                    held by the process that builds or fetches it
<root>/.new-<digest>-*                   a running or killed build
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host.durable import sync

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Image:
    """One image, ready to back overlays. `digest` is that of its recipe or source, `content_digest` that of the
    disk."""

    name: str
    digest: str
    content_digest: str
    directory: Path
    disk: Path
    disk_format: Literal["raw", "qcow2"]
    boot: Literal["direct", "disk"]
    kernel: Path | None
    initrd: Path | None
    kernel_args: str
    user: str
    virtual_size: int
    """Bytes. An overlay must not be smaller: `refuse_disk`."""
    manifest: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """`packages` and `containers` with their versions and identifiers, `sources`, `files` with their sha256."""


class ImageStore:
    """The images beneath one directory, readable for the user of QEMU, writable for the owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, digest: str) -> Image | None:
        """The finished image of this digest, or None. One with an invalid manifest counts as absent."""
        directory = self._directory(digest)
        try:
            described = json.loads((directory / "manifest.json").read_bytes())
            return _read_image(directory, digest, described)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def list(self) -> tuple[Image, ...]:
        if not self.root.is_dir():
            return ()
        found = (self.find(place.name) for place in sorted(self.root.iterdir()) if _DIGEST.fullmatch(place.name))
        return tuple(image for image in found if image is not None)

    def remove(self, digest: str) -> bool:
        """Remove an image; False if there was none. The caller checks that no overlay uses it."""
        directory = self._directory(digest)
        if not directory.exists():
            return False  # without a lock, which would create the store
        with self.lock(digest):
            if not directory.exists():
                return False
            # Renamed first, so that a partly removed image is never found.
            doomed = self.root / f".new-{digest}-removed-{os.getpid()}"
            directory.rename(doomed)
            shutil.rmtree(doomed)
        return True

    @contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """The lock for creating an image. Waits for another process, which usually finishes the image."""
        self.create_root()
        handle = os.open(
            self.root / f".lock-{self._directory(digest).name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def create(self, digest: str) -> Iterator[Path]:
        """A new directory next to the images, to be used under `lock`. Directories of killed builds are removed
        first."""
        self.create_root()
        for stale in self.root.glob(f".new-{digest}-*"):
            shutil.rmtree(stale)
        directory = Path(tempfile.mkdtemp(prefix=f".new-{digest}-", dir=self.root))
        directory.chmod(0o711)
        try:
            yield directory
        finally:
            if directory.exists():
                shutil.rmtree(directory)

    def commit(self, directory: Path, description: Mapping[str, Any]) -> Image:
        """Write the manifest and rename a directory of `create` to its final name. `description` are the fields of an
        Image."""
        digest = str(description["digest"])
        manifest = {"manifest_version": _MANIFEST_VERSION, **description}
        (directory / "manifest.json").write_text(
            json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        for place in directory.iterdir():
            place.chmod(0o444)
            # Synced before the rename, so that a finished name has its content after a power failure.
            sync(place)
        sync(directory)
        final = self._directory(digest)
        if final.exists():  # it exists, but its manifest is invalid: `find` returned None
            shutil.rmtree(final)
        directory.rename(final)
        sync(self.root)
        image = self.find(digest)
        if image is None:
            raise ProvisionError("the new image cannot be read", where=str(final), hint="check its manifest.json")
        return image

    def create_root(self) -> None:
        try:
            self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"the image store cannot be created: {error.strerror}",
                where=str(self.root),
                hint="check the permissions of its parent folder",
            ) from error

    def _directory(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is not a sha256 digest")
        return self.root / digest


def refuse_disk(disk: int, image: int) -> str:
    """The reason why a disk of so many MiB is too small for an image of so many bytes, or an empty text."""
    return (
        f"the image requires {-(-image >> 20)} MiB, and a disk of {disk} MiB would cut off its end"
        if disk << 20 < image
        else ""
    )


def is_digest(text: str) -> bool:
    """True if `text` has the form of an image's digest."""
    return _DIGEST.fullmatch(text) is not None


def _read_image(directory: Path, digest: str, described: dict[str, Any]) -> Image | None:
    boot, disk_format = described["boot"], described["disk_format"]
    if described["manifest_version"] != _MANIFEST_VERSION or described["digest"] != digest:
        return None
    if boot not in ("direct", "disk") or disk_format not in ("raw", "qcow2"):
        return None
    disk = directory / f"disk.{disk_format}"
    kernel, initrd = (directory / "vmlinuz", directory / "initrd") if boot == "direct" else (None, None)
    if not all(place is None or place.is_file() for place in (disk, kernel, initrd)):
        return None
    return Image(
        name=described["name"],
        digest=digest,
        content_digest=described["content_digest"],
        directory=directory,
        disk=disk,
        disk_format=disk_format,
        boot=boot,
        kernel=kernel,
        initrd=initrd,
        kernel_args=described["kernel_args"],
        user=described["user"],
        virtual_size=described["virtual_size"],
        manifest=described["manifest"],
    )
