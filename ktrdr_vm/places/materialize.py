"""The workspace of a request, made again in a private folder: its commit, its uncommitted files, its profile and its
playbooks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import create_file, open_file, open_folder, split_name
from ktrdr_vm.host.clone import create_clone
from ktrdr_vm.places.request import BASE, BUNDLE, FILES, UNCOMMITTED, Request, is_file_name

_MAX_ENTRIES = 20_000
_MAX_BYTES = 1024 * 1024 * 1024


def materialize(request: Request, folder: Path, into: Path) -> tuple[Path, Path]:
    """The path of the profile and the workspace, made in the empty folder `into` from the folder of the request."""
    workspace = into / "workspace"
    names = [one.name for one in request.files]
    if request.commit:
        create_clone(
            [folder / name for name in (BASE, BUNDLE) if name in names],
            workspace,
            commit=request.commit,
            branch=request.branch,
            refs=request.refs,
            shallow=request.shallow,
        )
    else:
        workspace.mkdir()
    if UNCOMMITTED in names:
        with os.fdopen(open_file(folder, UNCOMMITTED), "rb") as archive:
            unpack_files(archive, workspace)
    remove_files(workspace, request.deleted)
    apart = workspace if request.in_workspace else into / "profile"
    apart.mkdir(exist_ok=True)
    for name in names:
        if name.startswith(FILES):
            inner = name.removeprefix(FILES)
            # Playbooks belong to the workspace in any case; a profile that is elsewhere stays out of it.
            root = workspace if request.in_workspace or inner.startswith("workspace/") else apart
            _copy(folder, name, root, inner.removeprefix("workspace/") if not request.in_workspace else inner)
    return apart / request.profile, workspace


def _copy(folder: Path, name: str, root: Path, inner: str) -> None:
    """Write a file that the workspace does not have in this version. One that it has keeps its mode, which Git
    compares."""
    with os.fdopen(open_file(folder, name), "rb") as source:
        mode = 0o644
        with contextlib.suppress(FileNotFoundError), os.fdopen(open_file(root, inner), "rb") as present:
            mode = stat.S_IMODE(os.fstat(present.fileno()).st_mode)
            if hashlib.file_digest(present, "sha256").digest() == hashlib.file_digest(source, "sha256").digest():
                return
            source.seek(0)
        with os.fdopen(create_file(root, inner, replace=True), "wb") as target:
            shutil.copyfileobj(source, target)
            os.fchmod(target.fileno(), mode)


def unpack_files(archive: IO[bytes], root: Path) -> None:
    """Write the files and links of a tar beneath `root`. Links are created and never followed. UsageError for anything
    else."""
    total = 0
    with tarfile.open(fileobj=archive, mode="r:") as source:
        for number, entry in enumerate(source):
            total += max(entry.size, 0)
            if number >= _MAX_ENTRIES or total > _MAX_BYTES:
                raise _refuse(entry.name, f"more than {_MAX_ENTRIES} files or {_MAX_BYTES >> 20} MiB")
            if not is_file_name(FILES + entry.name):
                raise _refuse(entry.name, "its name is not valid in a workspace")
            if entry.issym():
                _create_link(root, entry)
            elif entry.isreg():
                content = source.extractfile(entry)
                assert content is not None
                with os.fdopen(create_file(root, entry.name, replace=True), "wb") as target:
                    shutil.copyfileobj(content, target)
                    os.fchmod(target.fileno(), 0o644 | stat.S_IMODE(entry.mode) & 0o111)
            else:
                raise _refuse(entry.name, "it is neither a file nor a link")


def _create_link(root: Path, entry: tarfile.TarInfo) -> None:
    *folders, last = split_name(entry.name)
    with open_folder(root, folders, create=True) as parent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(last, dir_fd=parent)
        os.symlink(entry.linkname, last, dir_fd=parent)


def remove_files(root: Path, names: Iterable[str]) -> None:
    """Remove files and links beneath `root`; one that does not exist is no error."""
    for name in names:
        *folders, last = split_name(name)
        with contextlib.suppress(OSError), open_folder(root, folders) as parent:
            os.unlink(last, dir_fd=parent)


def _refuse(name: str, reason: str) -> UsageError:
    return UsageError(
        f"the uncommitted file {name!a:.100} is refused: {reason}", where=UNCOMMITTED, hint="submit the request again"
    )
