"""The files of a commit, written to a folder of this program: what judges another commit, without the working tree of
the person."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.beneath import Place, check_name, create_file, open_folder
from ktrdr_vm.host.git import View

MAX_FILES = 200_000
MAX_BYTES = 1 << 30
_LISTING_LIMIT = 64 * 1024 * 1024
# Names of trees and blobs come from whoever made the commit.
_BOUNDS = ("prlimit", "--data=1073741824", "--cpu=120", f"--fsize={2 * MAX_BYTES}", "--")
_KINDS = {b"100644": 0o644, b"100755": 0o755, b"120000": 0}
_MAX_LINK = 4096


@dataclass(frozen=True)
class _File:
    name: str
    mode: int
    """0 for a link."""
    blob: bytes
    size: int


@contextlib.contextmanager
def write_files(view: View, commit: str) -> Iterator[Path]:
    """A folder with the files and links of a commit, until the end of the block. Links are there so that they are
    refused, not followed.

    Submodules are left out, and names that no playbook can have, such as those that lead out of the folder. UsageError
    for more than MAX_FILES files or MAX_BYTES bytes.
    """
    files = _list_files(view, commit)
    with tempfile.TemporaryDirectory(prefix="ktrdr-base-") as made, tempfile.TemporaryFile() as content:
        root = Path(made).resolve()
        asked = b"".join(file.blob + b"\n" for file in files)
        view.git("cat-file", "--batch", "--buffer", stdin=asked, stdout=content.fileno(), bounds=_BOUNDS)
        content.seek(0)
        for file in files:
            _write(root, file, content, commit)
        yield root


def _list_files(view: View, commit: str) -> list[_File]:
    with tempfile.TemporaryFile() as listed:
        view.git("ls-tree", "-r", "-z", "--long", "--full-tree", commit, stdout=listed.fileno(), bounds=_BOUNDS)
        if os.fstat(listed.fileno()).st_size > _LISTING_LIMIT:
            raise _too_large(commit)
        listed.seek(0)
        lines = [line for line in listed.read().split(b"\0") if line]
    files = []
    for line in lines:
        facts, _, name = line.partition(b"\t")
        mode, kind, blob, size = facts.split()
        if kind == b"blob" and mode in _KINDS and not check_name(os.fsdecode(name)):
            files.append(_File(os.fsdecode(name), _KINDS[mode], blob, int(size)))
    if len(files) > MAX_FILES or sum(file.size for file in files) > MAX_BYTES:
        raise _too_large(commit)
    return files


def _write(root: Path, file: _File, content: BinaryIO, commit: str) -> None:
    """Write the next blob of the stream. Its header is checked, because what follows depends on it."""
    if content.readline(200) != b"%s blob %d\n" % (file.blob, file.size):
        raise UsageError(
            f"{file.name[:200]!a} cannot be read from the repository",
            where=commit,
            hint="check the repository with `git fsck`",
        )
    data = content.read(file.size)
    content.read(1)
    try:
        if not file.mode:
            _write_link(root, file.name, data[:_MAX_LINK])
            return
        with os.fdopen(create_file(root, file.name), "wb") as target:
            target.write(data)
            os.fchmod(target.fileno(), file.mode)
    except (OSError, ValueError, KtrdrError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{file.name[:200]!a} cannot be written: {reason}",
            where=commit,
            hint="name another base with --base, or free disk space",
        ) from None


def _write_link(root: Path, name: str, target: bytes) -> None:
    *folders, last = name.split("/")
    with open_folder(Place(root), folders, create=True) as folder:
        os.symlink(target, os.fsencode(last), dir_fd=folder)


def _too_large(commit: str) -> UsageError:
    return UsageError(
        f"the base commit has more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB",
        where=commit,
        hint="name a base with fewer files with --base; large files belong into Git LFS or an artifact store",
    )
