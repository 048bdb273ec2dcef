"""The run directories on disk. Only this file opens paths beneath `runs/`.

During a run its directory belongs to root. At its end a digest of each file is stored elsewhere, and the directory is
given to the user who started the run. From then on each name in it may be a link, a pipe or another file: it is opened
by descriptor, without following links, and only a regular file of that user is read. A continued run gets a new
directory, with the files whose digests are unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ktrdr_vm.errors import HostError, KtrdrError, UsageError
from ktrdr_vm.host.beneath import Place, create_file, open_file, open_folder, open_regular
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.host.run_removal import find_sums, remove_run
from ktrdr_vm.host.tree_removal import remove_tree_at

MAX_DOCUMENT = 64 * 1024 * 1024
MAX_LINE = 4 * 1024 * 1024
_MAX_NAMES = 100_000


# -- during a run ------------------------------------------------------------------------------------------------------


def create_run(home: Home, instance_id: str, run_id: str, *, continued: bool = False) -> Path:
    """The directory of a run, for root only until `hand_over`. `continued` copies the files of an old one whose digests
    are unchanged."""
    parent = _make_parent(home, instance_id)
    path = parent / run_id
    if continued and os.path.lexists(path):
        facts = path.lstat()
        # It was not handed over, or to this user: no other user could change it.
        if not (stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()):
            _take_up(path)
    else:
        path.mkdir(mode=0o700)
    return path


def require_own(path: Path) -> None:
    """HostError unless a directory belongs to this user and is no link: root must not write to a folder that another
    user may change."""
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise HostError("the run directory belongs to another user", where=str(path), hint="remove it, then try again")


def _make_parent(home: Home, instance_id: str) -> Path:
    parent = home.runs / instance_id
    for folder in (home.runs, parent):
        folder.mkdir(mode=0o711, exist_ok=True)
        with open_folder(Place(folder.parent, (folder.name,))) as descriptor:
            if os.geteuid() == 0:
                os.fchown(descriptor, 0, 0)
            # The user may traverse it to the own files, and list nothing else.
            os.fchmod(descriptor, 0o711)
    return parent


def _take_up(path: Path) -> None:
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    for left in (new, old):
        remove_run(left)
    new.mkdir(mode=0o700)
    for name, digest in FinishedRun(path).digests().items():
        with (
            contextlib.suppress(OSError, KtrdrError),
            os.fdopen(open_file(Place(path.parent, (path.name,)), name), "rb") as source,
        ):
            with os.fdopen(create_file(new, name), "wb") as target:
                shutil.copyfileobj(source, target)
            with (new / name).open("rb") as copied:
                same = hashlib.file_digest(copied, "sha256").hexdigest() == digest
            if not same:
                (new / name).unlink()
    path.rename(old)
    new.rename(path)
    remove_run(old)


def hand_over(path: Path, owner: tuple[int, int]) -> None:
    """Store a digest of each file, then give everything to the user.

    From the inside out and without following links: no user can enter before the outermost folder is given.
    """
    with contextlib.suppress(OSError, HostError):
        make_private(find_sums(path).parent.parent, find_sums(path).parent)
        write_durably(find_sums(path), json.dumps(_digest_tree(path)).encode())
    for _, _, files, descriptor in os.fwalk(path, topdown=False, follow_symlinks=False):
        for name in files:
            os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)
        os.fchown(descriptor, *owner)


def _digest_tree(path: Path) -> dict[str, str]:
    found = {}
    for folder, _, files, descriptor in os.fwalk(path, follow_symlinks=False):
        for name in files[:_MAX_NAMES]:
            with contextlib.suppress(OSError), os.fdopen(open_regular(name, descriptor), "rb") as file:
                found[str((Path(folder) / name).relative_to(path))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# -- after a run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedRun:
    """The directory of a run that may have been handed over. Only regular files of its owner are read."""

    path: Path

    @property
    def home(self) -> Home:
        """The state directory that it is in."""
        return Home(self.path.parents[2])

    @contextlib.contextmanager
    def _open_directory(self, name: str) -> Iterator[tuple[int, str, int]]:
        *folders, last = name.split("/")
        with open_folder(Place(self.path.parent, (self.path.name,))) as directory:
            owner, caller = os.fstat(directory).st_uid, find_owner()[0]
            if caller not in (0, owner) and owner != os.geteuid():
                raise UsageError("this run belongs to another user", where=str(self.path), hint="ask its owner")
        with open_folder(Place(self.path.parent, (self.path.name, *folders))) as folder:
            yield folder, last, owner

    def open(self, name: str) -> IO[bytes]:
        """A file of the run, for reading. FileNotFoundError if there is none; UsageError for a file that the run cannot
        have written."""
        try:
            with self._open_directory(name) as (folder, last, owner):
                file = os.fdopen(open_regular(last, folder), "rb")
                if os.fstat(file.fileno()).st_uid != owner:
                    file.close()
                    raise OSError(1, "the file belongs to another user", name)
                return file
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UsageError(
                f"{name} is not a regular file in the run directory: {error.strerror}",
                where=str(self.path),
                hint="links are not followed; remove it if it is one",
            ) from None

    def read(self, name: str, limit: int = MAX_DOCUMENT) -> bytes:
        """The bytes of the file, with the errors of `open`. UsageError if there are more than `limit`."""
        with self.open(name) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UsageError(
                f"{name} is larger than {limit} bytes",
                where=str(self.path),
                hint="runs write no files of this size; the file was changed",
            )
        return content

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The JSON objects with a time in a file of JSON lines; empty if the file does not exist."""
        try:
            file = self.open(name)
        except FileNotFoundError:
            return
        with file:
            while line := file.readline(MAX_LINE):
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict) and isinstance(row.get("time"), str):
                        yield row

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object of the run. FileNotFoundError if there is none; UsageError for anything else."""
        return parse_document(self.read(name), str(self.path / name))

    def list(self, folder: str, suffix: str) -> list[str]:
        """Names of the files beneath a folder of the run, sorted; empty if the folder does not exist or is a link."""
        found: list[str] = []
        pending = [folder]
        while pending and len(found) < _MAX_NAMES:
            here = pending.pop()
            with (
                contextlib.suppress(OSError, KtrdrError),
                self._open_directory(f"{here}/.") as (descriptor, _, _owner),
                os.scandir(descriptor) as entries,
            ):
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and here.count("/") < 32:
                        pending.append(f"{here}/{entry.name}")
                    elif entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                        found.append(f"{here}/{entry.name}")
        return sorted(found)

    def digests(self) -> dict[str, str]:
        """The digest of each file at the time when the run was handed over; empty before."""
        try:
            content: dict[str, str] = json.loads(find_sums(self.path).read_bytes())
            return content
        except (OSError, ValueError):
            return {}

    def confirms(self, name: str, content: bytes) -> bool:
        """True if the run wrote `content` to the file `name`."""
        return self.digests().get(name) == hashlib.sha256(content).hexdigest()

    @property
    def owner(self) -> int:
        with open_folder(Place(self.path.parent, (self.path.name,))) as directory:
            return os.fstat(directory).st_uid

    @contextlib.contextmanager
    def build(self) -> Iterator[Path]:
        """A temporary folder of root, in which content is prepared that `deliver` moves into the run."""
        folder = self.path.with_name(f".{self.path.name}.made")
        remove_run(folder)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove_run(folder)

    def deliver(self, made: Path, names: tuple[str, ...], owner: tuple[int, int]) -> None:
        """Move prepared content into the run, with its owner, and replace an existing name. Links are removed, not
        followed."""
        for path in (*made.rglob("*"),):
            os.chown(path, *owner, follow_symlinks=False)
        with open_folder(Place(self.path.parent, (self.path.name,))) as directory, open_folder(made) as source:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    try:
                        os.unlink(name, dir_fd=directory)
                    except IsADirectoryError:
                        remove_tree_at(name, directory)
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=directory)


def find_run(home: Home, instance_id: str, run_id: str) -> Path:
    """The directory of a run, the newest for `latest`. UsageError if there is none."""
    folder = home.runs / instance_id
    name = run_id
    if run_id == "latest":
        with contextlib.suppress(OSError):
            name = str((folder / "latest").readlink())
    plain = bool(name) and "/" not in name and not name.startswith(".") and "\0" not in name
    if not plain or not os.path.lexists(folder / name) or (name == "latest" and not (folder / name).is_dir()):
        raise UsageError(
            f"there is no run {run_id} of {instance_id}",
            where=str(folder),
            hint="list that folder, or run `ktrdr-vm apply` first",
        )
    return folder / name


def list_runs(home: Home, instance_id: str = "") -> list[FinishedRun]:
    """All runs that are kept, or those of one instance_id, in the order of their names."""
    folders = [home.runs / instance_id] if instance_id else sorted(home.runs.iterdir()) if home.runs.is_dir() else []
    return [
        FinishedRun(path)
        for folder in folders
        if folder.is_dir() and not folder.is_symlink()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    ]


def list_newest(home: Home) -> list[FinishedRun]:
    """The newest run of each instance_id."""
    found = []
    for folder in sorted(home.runs.iterdir()) if home.runs.is_dir() else ():
        with contextlib.suppress(KtrdrError, OSError):
            found.append(FinishedRun(find_run(home, folder.name, "latest")))
    return found


def parse_document(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object that a run wrote: each key once, and finite numbers. UsageError for anything else."""
    try:
        data = json.loads(content, object_pairs_hook=take_once, parse_float=take_finite, parse_constant=take_finite)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UsageError("this is not a document of a run", where=where, hint="apply again; the file was changed")
    return data


def take_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if it has a key twice, since readers differ in which of them counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def take_finite(text: str) -> float:
    """A number of JSON; ValueError for `NaN`, and for one that is infinite as a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not JSON, or too large")
    return number
