"""Reads a playbook and its includes from its folder, without following links."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ktrdr_vm.errors import DocumentError, KtrdrError, Problem, UsageError
from ktrdr_vm.gates.arguments import is_template
from ktrdr_vm.gates.certain import is_certain, list_certain
from ktrdr_vm.gates.model import MAX_SENT, Node, Playbook, Task
from ktrdr_vm.gates.modules.base import ModuleFailure
from ktrdr_vm.gates.modules.sources import digest_listing, is_missing, list_source, read_source
from ktrdr_vm.gates.playbook import PLAYBOOK_HINT, parse_playbook
from ktrdr_vm.host.beneath import Place, find_place, open_file, open_folder, split_name
from ktrdr_vm.profile.strict_yaml import MAX_BYTES

# Limit of all files that one playbook sends.
MAX_TOTAL = 512 * 1024 * 1024
# Limit of the places where such files are searched: each task has three, and three more in every role.
MAX_SEARCHED = 50_000


def _find_files(playbook: Playbook, folder: Place, read: dict[str, bytes]) -> dict[str, str]:
    """The files that were read, and those that tasks send, with their digests; see `Playbook.files`. A name that is an
    expression is known only when its task runs."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in read.items()}
    total = searched = 0
    for task in _tasks(node for play in playbook.plays for node in (*play.tasks, *play.handlers)):
        if not (source := _find_source(task)):
            continue
        # The paths that the task will search; the task reports files that cannot be read.
        for name in (*(f"{inner}{source}" for inner in ("", "files/", "templates/")), *_role_names(read, source)):
            if name in digests:
                continue
            for found, (digest, size) in _digest_source(folder, name).items():
                digests[found] = digest
                total += size
                searched += 1
            if searched > MAX_SEARCHED:
                raise UsageError(
                    f"the files that this playbook copies are searched in more than {MAX_SEARCHED} places",
                    where=str(playbook.path),
                    hint="copy whole folders in fewer tasks, or split the playbook into several gates",
                )
            if total > MAX_TOTAL:
                raise UsageError(
                    f"the files that this playbook copies are larger than {MAX_TOTAL >> 20} MiB in total",
                    where=str(playbook.path),
                    hint="commit large files to the workspace, or fetch them in the guest",
                )
    return digests


def _find_source(task: Task) -> str:
    """The name of the file that a task sends, as written; empty if it sends none."""
    source = task.arguments.get("src") or str(task.arguments.get("cmd", "")).split(" ")[0]
    return source if task.module in ("copy", "template", "script") and isinstance(source, str) else ""


def _refuse_missing(playbook: Playbook, roots: Sequence[Place], read: Iterable[str]) -> None:
    """DocumentError for files that surely-run tasks send and that exist nowhere: such a task would fail after minutes.

    Roles are searched for every task, whether it is in one or not.
    """
    roles = sorted({"/".join(name.split("/")[:2]) for name in read if name.startswith("roles/")})
    within = [
        f"{folder}{inner}" for folder in ("", *(f"{role}/" for role in roles)) for inner in ("files", "templates")
    ]
    tasks = [task for play in playbook.plays if is_certain(play.common) for task in list_certain(play.tasks)]
    named: dict[str, Task] = {}
    for task in tasks:
        source = _find_source(task)
        if source and '"' not in source and "'" not in source and not is_template(source):
            named.setdefault(source, task)
    problems = []
    for source, task in named.items():
        if is_missing(roots, source, within):
            file, line, column = task.where.rsplit(":", 2)
            places = "the folders `files` and `templates`, the playbook's folder and the workspace"
            what = f"{task.module}: there is no file {source!r}; it was searched in {places}"
            problems.append(Problem(file, int(line), int(column), "", what))
    if problems:
        raise DocumentError(problems, hint="correct the name, or add the file; its name is from the playbook's folder")


def _refuse_unread(playbook: Playbook, folder: Place, read: Iterable[str]) -> None:
    """DocumentError for what ansible-playbook would read beside the playbook and in its roles, and this program would
    not. A file of variables that the playbook names itself was read."""
    read = set(read)
    places = [("group_vars/all", "name it in `vars_files`, or use `vars`")]
    for role in sorted({"/".join(name.split("/")[:2]) for name in read if name.startswith("roles/")}):
        places += [(f"{role}/{part}/main", "write one file main.yml") for part in ("vars", "defaults")]
        places += [(f"{role}/meta/argument_specs", "use `assert` in the tasks of the role")]
    problems = []
    for name, advice in places:
        for ending in ("", ".yml", ".yaml", ".json"):
            one = f"{name}{ending}"
            known = one in read or (name.endswith("/main") and ending in (".yml", ".yaml"))
            if not known and _exists(folder, one):
                what = f"{one!r} would be read by ansible-playbook, and is not supported; {advice}"
                problems.append(Problem(playbook.source, 1, 1, "", what))
    if problems:
        raise DocumentError(problems, hint=PLAYBOOK_HINT)


def _exists(folder: Place, name: str) -> bool:
    *parts, last = split_name(name)
    try:
        with open_folder(folder, parts) as descriptor:
            os.stat(last, dir_fd=descriptor, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, KtrdrError):
        return True
    return True


def _digest_source(folder: Place, name: str) -> dict[str, tuple[str, int]]:
    """Digest and size of a file, or of a folder's listing and its files; of neither, an empty digest."""
    with contextlib.suppress(OSError, KtrdrError):
        try:
            listed = list_source((folder,), name)
        except ModuleFailure:
            listed = None
        if listed is None:
            with os.fdopen(open_file(folder, name), "rb") as stream:
                return {name: _digest(stream)}
        found = {f"{name.rstrip('/')}/": (digest_listing(listed), 0)}
        for one, _ in listed:
            with os.fdopen(open_file(folder, one), "rb") as stream:
                found[one] = _digest(stream)
        return found
    return {name: ("", 0)}


def _role_names(read: Iterable[str], source: str) -> list[str]:
    """The names that a file can have in the roles whose files were read."""
    roles = sorted({"/".join(name.split("/")[:2]) for name in read if name.startswith("roles/")})
    return [f"{role}/{inner}{source}" for role in roles for inner in ("files/", "templates/", "")]


def _digest(stream: BinaryIO) -> tuple[str, int]:
    """sha256 and size of a file, up to the limit of a task, read in chunks."""
    digest, size = hashlib.sha256(), 0
    while size <= MAX_SENT and (piece := stream.read(min(1 << 20, MAX_SENT + 1 - size))):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def _tasks(nodes: Iterable[Node]) -> Iterator[Task]:
    for node in nodes:
        if isinstance(node, Task):
            yield node
            yield from _tasks(node.included)
        else:
            yield from _tasks((*node.block, *node.rescue, *node.always))


def place_playbook(path: Path, beneath: Path | None) -> Place:
    """The root of a playbook: the workspace `beneath` if its path begins with it, else its own folder."""
    return find_place(path, (beneath,) if beneath else ())


def load_playbook(path: Path, *, beneath: Path | None = None, source: str = "") -> Playbook:
    """Parse the playbook at `path`. UsageError if it cannot be read, DocumentError with all errors if it is invalid.

    `source` is the name for messages, by default the path. A playbook `beneath` a workspace is opened from there
    without following links; elsewhere links in the path of its folder are followed. Includes must be regular files
    beneath its folder.
    """
    place = place_playbook(path, beneath)
    try:
        with os.fdopen(open_file(place), "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, KtrdrError) as error:
        raise UsageError(
            f"the playbook cannot be read: {error}", where=str(path), hint="name a readable YAML file"
        ) from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DocumentError([Problem(source or str(path), line, 1, "", "not UTF-8")], hint=PLAYBOOK_HINT) from None

    files = {path.name: raw}

    def read(name: str) -> str:
        with os.fdopen(open_file(place.parent, name), "rb") as stream:
            files[name] = stream.read(MAX_BYTES + 1)
        return files[name].decode("utf-8")

    def read_template(name: str) -> str:
        """A template, where its task will search it. A role's is searched in the roles that were read."""
        roles = {"/".join(one.split("/")[:2]) for one in files if one.startswith("roles/")}
        within = [*(f"{role}{inner}" for role in sorted(roles) for inner in ("/templates", "")), "templates"]
        try:
            return read_source((place.parent, *roots), name, max_bytes=MAX_BYTES, within=within).decode("utf-8")
        except ModuleFailure as error:
            raise FileNotFoundError(str(error)) from None

    roots = (Place(beneath),) if beneath else ()
    playbook = parse_playbook(text, source or str(path), read=read, read_template=read_template)
    playbook = replace(playbook, folder=str(place.parent.path.absolute()))
    _refuse_unread(playbook, place.parent, files)
    found = _find_files(playbook, place.parent, files)
    if roots:
        _refuse_missing(playbook, (place.parent, *roots), files)
    return replace(playbook, files=found)
