"""The files of a repository by name, bounded in depth, number and bytes; links and hidden folders are not entered."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.beneath import open_file

MAX_BYTES = 128 * 1024
_MAX_DEPTH = 3
_MAX_ENTRIES = 20_000
# Folders with files of others, and hidden ones that describe how a project is built.
_FOREIGN = {"node_modules", "vendor", "venv", "site-packages", "dist", "build", "target", "__pycache__"}
_HIDDEN = {".github", ".devcontainer", ".circleci", ".forgejo", ".gitea"}
# Other names occur in no document that is written.
_PLAIN = re.compile(r"[A-Za-z0-9._+@/-]{1,200}")


class Files:
    """The regular files below the top of a repository, up to three folders deep."""

    def __init__(self, top: Path) -> None:
        self.top = top

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Relative names, the shallowest first, then in the order of the alphabet."""
        return tuple(sorted(self._walk(), key=lambda name: (name.count("/"), name)))

    def _walk(self) -> Iterator[str]:
        pending, seen = [("", 0)], 0
        while pending:
            folder, depth = pending.pop()
            with contextlib.suppress(OSError), os.scandir(self.top / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    seen += 1
                    if seen > _MAX_ENTRIES:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        hidden = entry.name.startswith(".") and entry.name not in _HIDDEN
                        if depth < _MAX_DEPTH and not hidden and entry.name not in _FOREIGN:
                            pending.append((name, depth + 1))
                    elif entry.is_file(follow_symlinks=False) and _PLAIN.fullmatch(name):
                        yield name

    def has(self, name: str) -> bool:
        return name in self.names

    def find(self, *names: str) -> str:
        """The first of these names that exists; empty if none does."""
        return next((name for name in names if self.has(name)), "")

    def read(self, name: str) -> str:
        """The text of a file; empty if it cannot be read or is larger than 128 KiB."""
        try:
            with os.fdopen(open_file(self.top, name), "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, KtrdrError):
            return ""
        return content.decode("utf-8", "replace") if len(content) <= MAX_BYTES else ""
