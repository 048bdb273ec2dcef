"""The files of a workspace that no commit has: uncommitted changes and what `include` names, read from the host once.

The VM in which the gates of the base run gets them, and later the fresh VM of the verification, beneath the commits of
the workload: what one of these commits changes, it decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, cast

from ktrdr_vm.errors import HostError
from ktrdr_vm.guest.commits import list_changed
from ktrdr_vm.guest.loose_names import find_included, find_new_submodules, find_uncommitted, find_unwatched
from ktrdr_vm.host.beneath import Place, UnsafePathError, open_folder, open_regular
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.git import BOUNDS, View, open_view
from ktrdr_vm.host.owner import may_read, reading_as
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.profile.model import Workspace

MAX_FILES = 20_000
MAX_BYTES = 1024 * 1024 * 1024
# A repository of the workspace with its path in it: the empty path, then those of the submodules.
Part = tuple[str, Repository]


@dataclass(frozen=True)
class LooseFiles:
    """A tar of files with paths from the top of the workspace, and the paths that are deleted. `commit` is what they
    differ from."""

    commit: str
    changed: tuple[str, ...]
    included: tuple[str, ...]
    deleted: tuple[str, ...]
    archive: BinaryIO

    @property
    def is_empty(self) -> bool:
        return not (self.changed or self.included or self.deleted)

    def store(self, folder: Path) -> None:
        """Write them to a folder, from which `open_stored` reads them back."""
        make_private(folder)
        self.archive.seek(0)
        with open(folder / "files.tar", "wb", opener=_open_private) as file:
            while piece := self.archive.read(1 << 20):
                file.write(piece)
        names = {"commit": self.commit, "changed": self.changed, "included": self.included, "deleted": self.deleted}
        write_durably(folder / "names.json", (json.dumps(names) + "\n").encode())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def open_stored(folder: Path) -> Iterator[LooseFiles | None]:
    """The files that `store` wrote; None if there are none. They can be read until the end of the block, also after
    their removal."""
    try:
        names = json.loads((folder / "names.json").read_text())
        archive = (folder / "files.tar").open("rb")
    except FileNotFoundError:
        yield None
        return
    with archive:
        changed, included, deleted = (tuple(names[key]) for key in ("changed", "included", "deleted"))
        yield LooseFiles(names["commit"], changed, included, deleted, archive)


@contextlib.contextmanager
def read_loose(parts: Sequence[Part], workspace: Workspace, note: Callable[[str], None]) -> Iterator[LooseFiles]:
    """Read them from the working trees. `note` is called for each file that is left out."""
    changed: list[str] = []
    included: list[str] = []
    deleted: list[str] = []
    blobs: dict[str, str] = {}
    with tempfile.TemporaryFile() as sink:
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, repository in parts:
                prefix = f"{path}/" if path else ""
                with open_view(repository.place) as view:
                    hidden, hidden_gone, sparse = find_unwatched(view)
                    if sparse:
                        note(
                            f"{path or 'the workspace'} is a sparse checkout: the guest also has the {sparse} files"
                            " that are not here"
                        )
                    if workspace.uncommitted == "include":
                        differing, gone = find_uncommitted(view, repository.commit)
                        gone += hidden_gone
                        for name in find_new_submodules(view, repository.commit):
                            note(f"the submodule {prefix}{name} is not in the guest: it was added and not committed")
                        blobs |= {
                            f"{prefix}{name}": blob
                            for name, blob in _read_blobs(view, repository.commit, hidden).items()
                        }
                    else:
                        differing, gone, hidden = [], [], []
                    matching = [] if path else find_included(view, workspace, repository, note)
                differing += hidden
                deleted += [f"{prefix}{name}" for name in gone]
                left_out = _pack(repository, prefix, [*differing, *matching], archive)
                for name in left_out:
                    note(
                        f"{prefix}{name} was not copied into the workspace: it is not a regular file or link that its"
                        " owner may read"
                    )
                changed += [f"{prefix}{name}" for name in differing if name not in left_out]
                included += [f"{prefix}{name}" for name in matching if name not in left_out]
        # Git does not compare files that its index hides; those of them that are as in the commit are no change.
        same = _find_same(sink, blobs, len(parts[0][1].commit))
        changed = [name for name in changed if name not in same]
        for name in blobs.keys() - same:
            note(
                f"{name} is a change in the guest: Git on the host does not look at it (assume-unchanged or"
                " skip-worktree)"
            )
        yield LooseFiles(parts[0][1].commit, tuple(changed), tuple(included), tuple(deleted), cast(BinaryIO, sink))


@contextlib.contextmanager
def lay_beneath(loose: LooseFiles, repository: Repository) -> Iterator[tuple[LooseFiles, tuple[str, ...]]]:
    """Those that the commit of the repository leaves as they were, and the names of those of which it has another
    version.

    What the commit has in the same version is neither.
    """
    with open_view(repository.place) as view:
        touched = _Touched(list_changed(view, loose.commit, repository.commit))
        decided = [name for name in (*loose.changed, *loose.included, *loose.deleted) if touched.covers(name)]
        known = _read_blobs(view, repository.commit, decided)
    same = {name for name in loose.deleted if name in known and not known[name]} | _find_same(
        loose.archive, known, len(repository.commit)
    )
    with tempfile.TemporaryFile() as sink:
        loose.archive.seek(0)
        with (
            tarfile.open(fileobj=loose.archive, mode="r:") as source,
            tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as target,
        ):
            for entry in source:
                if entry.name not in known:
                    target.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
        kept = [
            tuple(name for name in names if name not in known)
            for names in (loose.changed, loose.included, loose.deleted)
        ]
        left = replace(loose, changed=kept[0], included=kept[1], deleted=kept[2], archive=cast(BinaryIO, sink))
        yield left, tuple(name for name in decided if name not in same)


def _find_same(archive: IO[bytes], blobs: Mapping[str, str], length: int) -> set[str]:
    """Entries of a tar whose content is that of the object of their name. `length` is that of an object's id."""
    if not blobs:
        return set()
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:") as source:
        found = set()
        for entry in source:
            if entry.name in blobs:
                content = source.extractfile(entry) if entry.isreg() else None
                if _digest(content or io.BytesIO(os.fsencode(entry.linkname)), entry, length) == blobs[entry.name]:
                    found.add(entry.name)
        return found


class _Touched:
    """The paths that a commit changes, with every folder above them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = set(paths)
        self._above = {folder for path in self._paths for folder in _list_folders(path)}

    def covers(self, name: str) -> bool:
        """True if the commit changes the path, something beneath it, or what would be a folder above it."""
        return name in self._paths or name in self._above or not self._paths.isdisjoint(_list_folders(name))


def _list_folders(path: str) -> list[str]:
    """All folders above a path: of `a/b/c` these are `a/b` and `a`."""
    words = path.split("/")
    return ["/".join(words[:count]) for count in range(len(words) - 1, 0, -1)]


def _read_blobs(view: View, commit: str, names: Collection[str]) -> dict[str, str]:
    """The object of each path in a commit; an empty text where there is none."""
    if not names:
        return {}
    asked = b"".join(os.fsencode(f"{commit}:{name}") + b"\0" for name in names)
    with tempfile.TemporaryFile() as listed:
        view.git("cat-file", "--batch-check=%(objectname)", "-z", stdin=asked, stdout=listed.fileno(), bounds=BOUNDS)
        listed.seek(0)
        # A missing path is answered with its name, which may have line feeds; an object's id is a line of its own.
        answers = _split_answers(listed.read(), commit, names)
    return dict(zip(names, answers, strict=True))


def _split_answers(said: bytes, commit: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        missing = os.fsencode(f"{commit}:{name}") + b" missing\n"
        if said.startswith(missing):
            said = said[len(missing) :]
            yield ""
        else:
            line, _, said = said.partition(b"\n")
            yield line.decode("ascii", "replace")


def _digest(content: IO[bytes], entry: tarfile.TarInfo, length: int) -> str:
    """The id that Git gives to the bytes of a file or to the target of a link, in a repository whose ids have `length`
    digits."""
    size = entry.size if entry.isreg() else len(os.fsencode(entry.linkname))
    digest = hashlib.new("sha1" if length == 40 else "sha256", b"blob %d\0" % size, usedforsecurity=False)
    while piece := content.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _pack(repository: Repository, prefix: str, names: list[str], archive: tarfile.TarFile) -> set[str]:
    """Add files to a tar. Each is opened from the top without following links; anything but files and links is
    returned."""
    place, owner, left_out = repository.place, repository.owner, set[str]()
    for name in sorted(set(names)):
        folder, _, leaf = name.rpartition("/")
        try:
            with reading_as(owner), open_folder(place, folder.split("/") if folder else ()) as parent:
                _add(archive, f"{prefix}{name}", leaf, parent, owner)
        except (OSError, UnsafePathError):
            left_out.add(name)
        _require_size(archive, place)
    return left_out


def _require_size(archive: tarfile.TarFile, place: Place) -> None:
    if archive.offset > MAX_BYTES:
        raise HostError(
            f"more than {MAX_BYTES >> 20} MiB to copy", where=str(place.path), hint="restrict workspace.include"
        )
    if len(archive.getmembers()) > MAX_FILES:
        raise HostError(
            f"more than {MAX_FILES} files to copy",
            where=str(place.path),
            hint="restrict workspace.include, or commit the files",
        )


def _add(archive: tarfile.TarFile, name: str, leaf: str, parent: int, owner: tuple[int, int]) -> None:
    """One file or link of an open folder. OSError for anything else."""
    facts = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(facts.st_mode) & 0o755, int(facts.st_mtime)
    if stat.S_ISLNK(facts.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(leaf, dir_fd=parent)
        archive.addfile(entry)
        return
    with os.fdopen(open_regular(leaf, parent), "rb") as file:
        opened = os.fstat(file.fileno())
        if not may_read(opened, owner):
            raise PermissionError(13, "the owner may not read it", name)
        entry.size = opened.st_size
        if entry.size > MAX_BYTES:
            raise HostError(
                f"{name} is larger than {MAX_BYTES >> 20} MiB", where="workspace", hint="restrict workspace.include"
            )
        archive.addfile(entry, file)
