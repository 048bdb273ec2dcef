"""Fetching a stock cloud image from a URL: its checksum is verified during the download, then its header is read, then
it is stored."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ktrdr_vm.errors import HostError, ProvisionError, UsageError
from ktrdr_vm.host.capacity import DISK_FLOOR
from ktrdr_vm.images.disk import convert_raw
from ktrdr_vm.images.header import read_format
from ktrdr_vm.images.store import Image, ImageStore

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_MAX_BYTES = 64 << 30
_READ_TIMEOUT = 60.0
_REPORT_EVERY = 64 << 20
# The user that our seed creates in stock images.
_USER = "ktrdr"


def fetch_image(
    url: str, sha256: str, store: ImageStore, *, progress: Callable[[str], None], sources: tuple[str, ...] | None = None
) -> Image:
    """The image with this checksum: the existing one, or fetched from `url` (https, http or file).

    The checksum is its name, so a wrong image is never found, and another URL with the same content needs no
    download. `sources` are the permitted prefixes of URLs, including redirects; None permits any of the same scheme.
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
            _download(url, sha256, download, lambda done: progress(f"{name}: {done}"), sources)
            disk_format, virtual_size = read_format(download, _strip_password(url))
            # A plan must not depend on whether the image has been fetched, so all stock images have one format.
            if disk_format == "raw":
                convert_raw(download, directory / "disk.qcow2")
                download.unlink()
            else:
                download.rename(directory / "disk.qcow2")
            return store.commit(
                directory,
                {
                    "name": name,
                    "digest": sha256,
                    "content_digest": sha256,
                    "disk_format": "qcow2",
                    "boot": "disk",
                    "kernel_args": "",
                    "user": _USER,
                    "virtual_size": virtual_size,
                    "manifest": {"url": _strip_password(url), "packages": {}, "containers": {}},
                },
            )


def _check_request(url: str, sha256: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise UsageError(f"an image cannot be fetched from {url}", hint="use an https, http or file URL")
    if not _SHA256.fullmatch(sha256):
        raise UsageError(
            "the sha256 of an image must be 64 hexadecimal digits in lower case",
            where=url,
            hint="see the SHA256SUMS of its publisher",
        )
    return parts


def _download(
    url: str, sha256: str, target: Path, report: Callable[[str], None], sources: tuple[str, ...] | None
) -> None:
    """Stream into `target`. With a wrong checksum it is deleted before the error is raised."""
    digest, done = hashlib.sha256(), 0
    shown = _strip_password(url)
    local = urlsplit(url).scheme == "file"
    if local and not Path(urllib.request.url2pathname(urlsplit(url).path)).is_file():
        # A device or a pipe may have no end, and reading it may have side effects.
        raise ProvisionError("is not a regular file", where=shown, hint="name a disk image")
    try:
        with _make_opener(url, sources).open(url, timeout=_READ_TIMEOUT) as source, target.open("xb") as file:
            length = _read_length(source.headers.get("Content-Length"))
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                if shutil.disk_usage(target.parent).free < DISK_FLOOR << 20:
                    raise HostError(
                        f"less than {DISK_FLOOR} MiB of disk are left",
                        where=str(target.parent),
                        hint="free disk space for the image store",
                    )
                if done // _REPORT_EVERY != (done + len(chunk)) // _REPORT_EVERY:
                    now = (done + len(chunk)) >> 20
                    report(f"{now} of {length >> 20} MiB" if length else f"{now} MiB")
                done += len(chunk)
                if done > _MAX_BYTES:
                    raise ProvisionError(
                        f"is larger than {_MAX_BYTES >> 30} GiB", where=shown, hint="use a smaller image"
                    )
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        # ValueError: an address that urllib cannot read, of the profile, a proxy variable or a redirect.
        reason = getattr(error, "reason", error)
        raise ProvisionError(
            f"cannot be fetched: {reason}", where=shown, hint="check the address and the network"
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot be stored: {error.strerror}", where=str(target), hint="free disk space for the image store"
        ) from error
    if done < length:
        # http.client reads a connection that closed early as the end of the file.
        target.unlink()
        raise ProvisionError(
            f"the download ended after {done} of {length} bytes",
            where=shown,
            hint="try again; nothing of it was kept",
        )
    if digest.hexdigest() != sha256:
        target.unlink()
        # The error must not reveal the digest, because the profile is not trusted and root can read any file or URL.
        raise ProvisionError(
            f"does not have the sha256 {sha256}; it was not used",
            where=shown,
            hint="the image was changed: compare it with the checksums that its publisher signed",
        )


def _read_length(stated: str | None) -> int:
    """The length that a server states; 0 for none, and for what is no number."""
    return int(stated) if stated and stated.isascii() and stated.isdigit() else 0


class _Judge(urllib.request.HTTPRedirectHandler):
    """Follows redirects to permitted sources, and from https to https only."""

    def __init__(self, scheme: str, sources: tuple[str, ...] | None) -> None:
        self._scheme = scheme
        self._sources = sources

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        wanted = urlsplit(newurl)
        if wanted.scheme not in {self._scheme, "https"}:
            raise ProvisionError(
                f"redirects from {self._scheme} to an address without it, which is not followed",
                where=_strip_password(req.full_url),
                hint=f"use the last address of the image, if it is one of {self._scheme}, or another server",
            )
        if self._sources is not None and not newurl.startswith(self._sources):
            raise ProvisionError(
                "redirects to another address, which is not a source of the owner's policy",
                where=_strip_password(req.full_url),
                hint="use the last address of the image, or add it to images.sources in /etc/ktrdr-vm/policy.yaml",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _make_opener(url: str, sources: tuple[str, ...] | None) -> urllib.request.OpenerDirector:
    """An opener for the scheme of `url` only."""
    opener = urllib.request.OpenerDirector()
    scheme = urlsplit(url).scheme
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ]
    if scheme == "file":
        handlers.append(urllib.request.FileHandler())
    else:
        handlers += [urllib.request.ProxyHandler(), urllib.request.HTTPSHandler(), _Judge(scheme, sources)]
        handlers += [urllib.request.HTTPHandler()] if scheme == "http" else []
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _strip_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
