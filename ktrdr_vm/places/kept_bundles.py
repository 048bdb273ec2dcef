"""Bundles of history that a place keeps, so that later requests need not send them again.

bundles/<sha256>        a bundle with a complete history: the client is told of it, and sends only what it lacks
bundles/<sha256>.part   one that builds on another bundle, or whose history has a boundary; no other builds on it

A kept bundle is a hard link to the file of each request that has it: it uses no space of its own, and its number of
links says whether a request still has it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ktrdr_vm.host.rights import make_private
from ktrdr_vm.places.history import MOST_OFFERED, Offer, read_tips
from ktrdr_vm.places.request import HISTORY, SentFile, is_digest

_PART = ".part"


class KeptBundles:
    """The bundles in one folder, each checked once and never written again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_offers(self) -> list[Offer]:
        """Those with a complete history, the newest first, bounded."""
        found = []
        kept = [path for path in self._list() if is_digest(path.name)]
        for path in sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True):
            with path.open("rb") as file:
                if tips := read_tips(file):
                    found.append(Offer(os.fstat(file.fileno()).st_size, path.name, tips))
            if len(found) == MOST_OFFERED:
                break
        return found

    def link(self, digest: str, target: Path) -> None:
        """Make `target` a link to the bundle with this digest, if it is kept."""
        for kept in self._find(digest):
            with contextlib.suppress(OSError):
                os.link(kept, target, follow_symlinks=False)

    def has(self, folder: Path, one: SentFile) -> bool:
        """True if this file of the request in `folder` is a kept bundle: its digest was checked when it came with an
        earlier request."""
        own = os.lstat(folder / one.name) if one.name in HISTORY and (folder / one.name).exists() else None
        for kept in self._find(one.sha256):
            with contextlib.suppress(OSError):
                if own is not None and os.path.samestat(kept.stat(), own) and own.st_size == one.size:
                    return True
        return False

    def keep(self, folder: Path, one: SentFile, *, part: bool) -> None:
        """Keep a bundle of the request in `folder`, whose digest was checked."""
        make_private(self._folder)
        with contextlib.suppress(OSError):
            os.link(folder / one.name, self._find(one.sha256)[part], follow_symlinks=False)

    def remove_unused(self) -> None:
        """Remove those that no request has any more."""
        for path in self._list():
            with contextlib.suppress(OSError):
                if path.stat().st_nlink == 1:
                    path.unlink()

    def _find(self, digest: str) -> tuple[Path, Path]:
        """Where a bundle is kept: one with a complete history, or a part."""
        return self._folder / digest, self._folder / f"{digest}{_PART}"

    def _list(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []
