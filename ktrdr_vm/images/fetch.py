"""A stock cloud image from a URL: checked while it streams, probed once while it is still trusted, then in the store."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ktrdr_vm.errors import HostError, ProvisionError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.host.capacity import DISK_FLOOR
from ktrdr_vm.images.store import Image, ImageStore

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_MAX_BYTES = 64 << 30
_MAX_VIRTUAL = 1 << 40
_READ_TIMEOUT = 60.0
_REPORT_EVERY = 64 << 20
_FORMATS = {"raw": "raw", "qcow2": "qcow2"}
# The user that stock images are told to make by our seed; the image itself has none.
_USER = "ktrdr"


def fetch_image(url: str, sha256: str, store: ImageStore, *, progress: Callable[[str], None]) -> Image:
    """The image with this checksum: the one that is there, or fetched from `url` (https, http or file).

    The checksum is its name, so a wrong one can never be found later, and another address with the same bytes costs
    nothing.
    """
    parts = _check_request(url, sha256)
    found = store.find(sha256)
    if found is not None:
        return found
    with store.lock(sha256):
        found = store.find(sha256)
        if found is not None:
            return found
        with store.create(sha256) as directory:
            download = directory / "download"
            name = parts.path.rpartition("/")[2] or "image"
            _download(url, sha256, download, lambda done: progress(f"{name}: {done}"))
            disk_format, virtual_size = _probe(download, url)
            download.rename(directory / f"disk.{disk_format}")
            return store.commit(
                directory,
                {
                    "name": name,
                    "digest": sha256,
                    "content_digest": sha256,
                    "disk_format": disk_format,
                    "boot": "disk",
                    "kernel_args": "",
                    "user": _USER,
                    "virtual_size": virtual_size,
                    "manifest": {"url": _strip_password(url), "packages": {}, "containers": {}},
                },
            )


def read_image_info(text: str, where: str) -> tuple[str, int]:
    """Format and virtual size out of `qemu-img info --output=json`. Whatever refers to another file is refused."""
    described: dict[str, Any] = json.loads(text)
    disk_format = str(described.get("format"))
    hint = "use an image that is one complete raw or qcow2 file"
    if disk_format not in _FORMATS:
        raise ProvisionError(f"the image is {disk_format}, which is not supported", where=where, hint=hint)
    specific = described.get("format-specific", {}).get("data", {})
    if described.get("backing-filename") or described.get("full-backing-filename"):
        raise ProvisionError("the image is an overlay: it has a backing file", where=where, hint=hint)
    if specific.get("data-file"):
        raise ProvisionError("the image keeps its data in another file", where=where, hint=hint)
    size = int(described["virtual-size"])
    if not 0 < size <= _MAX_VIRTUAL:
        raise ProvisionError(f"the image's virtual size of {size} bytes is not plausible", where=where, hint=hint)
    return disk_format, size


def _check_request(url: str, sha256: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise UsageError(f"an image cannot be fetched from {url}", hint="use an https, http or file URL")
    if not _SHA256.fullmatch(sha256):
        raise UsageError("the sha256 of an image is 64 hexadecimal digits in lower case", where=url, hint="see the SHA256SUMS beside it")
    return parts


def _download(url: str, sha256: str, target: Path, report: Callable[[str], None]) -> None:
    """Stream into `target`. On a wrong checksum it is deleted before the error leaves here."""
    digest, done = hashlib.sha256(), 0
    shown = _strip_password(url)
    local = urlsplit(url).scheme == "file"
    if local and not Path(urllib.request.url2pathname(urlsplit(url).path)).is_file():
        # A device or a pipe has no end, and reading one may have effects.
        raise ProvisionError("is not a regular file", where=shown, hint="name a disk image")
    try:
        with urllib.request.urlopen(url, timeout=_READ_TIMEOUT) as source, target.open("xb") as file:  # noqa: S310 - schemes checked
            length = int(source.headers.get("Content-Length") or 0)
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                if shutil.disk_usage(target.parent).free < DISK_FLOOR << 20:
                    raise HostError(
                        f"less than {DISK_FLOOR} MiB of disk are left", where=str(target.parent), hint="make room in the image store"
                    )
                if done // _REPORT_EVERY != (done + len(chunk)) // _REPORT_EVERY:
                    report(f"{(done + len(chunk)) >> 20} of {length >> 20} MiB" if length else f"{done >> 20} MiB")
                done += len(chunk)
                if done > _MAX_BYTES:
                    raise ProvisionError(f"is larger than {_MAX_BYTES >> 30} GiB", where=shown, hint="use a smaller image")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ProvisionError(f"cannot be fetched: {reason}", where=shown, hint="check the address and the network") from error
    except OSError as error:
        raise HostError(f"cannot be stored: {error.strerror}", where=str(target), hint="make room in the image store") from error
    if digest.hexdigest() != sha256:
        target.unlink()
        # A profile of an untrusted branch must not learn the digest of any file that root can read.
        found = "another sha256" if local else f"the sha256 {digest.hexdigest()}"
        raise ProvisionError(
            f"has {found}, and not {sha256} as asked for; it was not used",
            where=shown,
            hint="the image changed, or somebody changed it: compare with what its publisher signed",
        )


def _probe(download: Path, url: str) -> tuple[str, int]:
    """The only place where a format is detected: the bytes are those that the checksum promised, no guest wrote them."""
    info = process.run(["qemu-img", "info", "--output=json", download], timeout=60)
    return read_image_info(info.text, _strip_password(url))


def _strip_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
