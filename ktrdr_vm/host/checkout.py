"""A checked-out Git repository: its folders, found without Git and without links, so that no part of another repository
is used.

Git would search all folders above and follow every pointer: a `.git` that is a link, a file that names the folder of
another repository, alternate objects. Here all parts belong to the repository, or to the main repository of which it is
a registered worktree.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import Place, open_folder, open_named_folder, open_regular

_MAX_POINTER = 8192
_MAX_ENTRIES = 2_000_000
# Git reads these whole. An archive can hold a sparse file of any size.
_MAX_REF = 8192
_MAX_ALTERNATES = 4
_MOST = {"packed-refs": 1 << 28, "shallow": 1 << 24}
_HEAD = re.compile(r"ref: refs/[^\x00-\x20\x7f~^:?*\[\\]+|[0-9a-f]{40}|[0-9a-f]{64}")
_COPY_OBJECTS = "`git repack -a -d && rm .git/objects/info/alternates` copies them into the repository"
_MINE = "clone it with `git clone`, and name the clone with --workspace"


@dataclass(frozen=True)
class Checkout:
    """The open folders of one repository, as descriptors: top of the working tree, folder of HEAD and index, folder of
    objects and refs."""

    top: int
    git_dir: int
    common: int
    common_path: Path
    head: str
    owner: tuple[int, int]


def find_top(place: Place) -> Place:
    """The folder with the `.git` that `place` belongs to: itself, or one above it up to its root. UsageError if there
    is none."""
    inner = place
    while True:
        # Opened by its name again, because a folder may have been replaced by a link since.
        with open_named_folder(inner, "workspace") as folder:
            if _is_there(".git", folder):
                return inner
        if not inner.parts:
            break
        inner = inner.parent
    above = find_above(place.root)
    if above is not None:
        raise UsageError(
            f"the workspace is not the top folder of its repository, which is {above}",
            where=str(place.path),
            hint=f"name the whole repository: --workspace {show_option(above)}",
        )
    raise UsageError(
        "the workspace is not a Git repository with a commit",
        where=str(place.path),
        hint="run `git init` and commit, or name another folder with --workspace",
    )


def find_above(folder: Path) -> Path | None:
    """The nearest folder above with a `.git`; None if there is none. What it contains is not checked."""
    return next((path for path in folder.parents if os.path.lexists(path / ".git")), None)


def show_option(folder: Path) -> str:
    """The shortest way to name a folder on the command line, from the current folder."""
    with contextlib.suppress(OSError):
        return min(os.path.relpath(folder), str(folder), key=len)
    return str(folder)


@contextlib.contextmanager
def open_checkout(top: Place) -> Iterator[Checkout]:
    """Open the folders of a repository. UsageError if a part of it is a link or belongs to another repository."""
    with contextlib.ExitStack() as held:
        folder = held.enter_context(open_named_folder(top, "workspace"))
        facts = os.fstat(folder)
        pointer = _read_pointer(folder, ".git", top)
        if pointer is None:
            git_place = Place(top.root, (*top.parts, ".git"))
            git_dir = common = held.enter_context(_open_git(git_place))
            common_path = git_place.path
        else:
            git_dir, common, common_path = _follow_pointer(pointer, folder, top, held)
        for descriptor in (git_dir, common):
            if os.fstat(descriptor).st_uid != facts.st_uid:
                theirs = os.fstat(descriptor).st_uid
                raise UsageError(
                    f"the repository belongs to the user {theirs}, and its working tree to the user {facts.st_uid}",
                    where=str(top.path),
                    hint=(
                        f"give both to one user: `chown {theirs} {shlex.quote(str(top.path))}` (Git's safe.directory"
                        " has no effect here)"
                    ),
                )
        _refuse_borrowed(common, common_path, top)
        # Git would wait for who writes to a named pipe in its place.
        read_own(git_dir, "index", 0, top)
        head = (_read_text(git_dir, "HEAD", top) or "").strip()
        if not _HEAD.fullmatch(head):
            raise UsageError(
                "the HEAD of the repository is neither a branch nor a commit",
                where=str(top.path),
                hint="`git checkout` a branch",
            )
        yield Checkout(folder, git_dir, common, common_path, head, (facts.st_uid, facts.st_gid))


def refuse_other_tree(checkout: Checkout, tree: Path, top: Place) -> None:
    """UsageError if `tree`, of `core.worktree`, is another folder: the person's files are there, and not beside
    `.git`."""
    if not _is_same(tree, checkout.top):
        raise UsageError(
            f"the repository keeps its files in another folder, {os.path.realpath(tree)} (core.worktree)",
            where=str(top.path),
            hint="clone it with `git clone`, and name the clone with --workspace; or, if its files are in this"
            " folder, run `git config --unset core.worktree`",
        )


def read_own(folder: int, name: str, limit: int, top: Place) -> bytes | None:
    """A regular file in a folder of the repository; None if it does not exist. UsageError for a link."""
    try:
        with os.fdopen(open_regular(name, folder), "rb") as file:
            return file.read(limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f".git: {name} cannot be read: {error.strerror}", where=str(top.path), hint=_MINE) from None


def _open_git(place: Place) -> contextlib.AbstractContextManager[int]:
    return open_named_folder(place, "the repository")


def _read_text(folder: int, name: str, top: Place) -> str | None:
    content = read_own(folder, name, _MAX_POINTER, top)
    return None if content is None else os.fsdecode(content)


def _read_pointer(folder: int, name: str, top: Place) -> str | None:
    """The content of a `.git` file; None if `.git` is a folder."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return None
    text = _read_text(folder, name, top) or ""
    if not text.startswith("gitdir: "):
        raise UsageError(".git is neither a folder nor a worktree's file", where=str(top.path), hint=_MINE)
    return text.removeprefix("gitdir: ").rstrip("\n")


def _follow_pointer(pointer: str, folder: int, top: Place, held: contextlib.ExitStack) -> tuple[int, int, Path]:
    """The folders of a linked worktree or a submodule. The main repository must have registered this working tree."""
    named = Path(os.path.normpath(top.path / pointer)).resolve()
    git_dir = held.enter_context(_open_git(Place(named)))
    if named.parent.name == "worktrees":
        back = Path((_read_text(git_dir, "gitdir", top) or "").strip())
        known, common_path = named / back.parent, named.parent.parent
        common = held.enter_context(_open_git(Place(common_path)))
    else:
        known, common, common_path = named / _read_worktree(git_dir, top), git_dir, named
    if not _is_same(known, folder):
        raise UsageError(
            f"the repository at {named} does not have this folder as a working tree", where=str(top.path), hint=_MINE
        )
    return git_dir, common, common_path


def _read_worktree(git_dir: int, top: Place) -> str:
    """`core.worktree`, as Git writes it into a submodule's own configuration. Other keys are ignored."""
    text = os.fsdecode(read_own(git_dir, "config", _MAX_POINTER, top) or b"")
    found = re.search(r"^\s*worktree\s*=\s*(\S.*?)\s*$", text, re.MULTILINE)
    return found[1] if found else "."


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_same(path: Path, folder: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(folder))
    except OSError:
        return False


def _refuse_borrowed(common: int, common_path: Path, top: Place) -> None:
    """UsageError unless objects and refs are files of the repository: no links, and no alternates outside."""
    for name in ("objects", "refs"):
        _refuse_links(name, common, top)
    for name, most in _MOST.items():
        read_own(common, name, 0, top)
        _refuse_large(common, name, most, top)
    _refuse_alternates(common_path / "objects", top, 0, set())


def _refuse_large(folder: int, name: str, most: int, top: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_size > most:
            raise UsageError(f".git: {name} is larger than {most} bytes", where=str(top.path), hint=_MINE)


def _refuse_links(name: str, common: int, top: Place) -> None:
    seen = 0
    try:
        root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=common)
    except OSError as error:
        raise UsageError(
            f".git: {name} cannot be opened as a folder: {error.strerror}", where=str(top.path), hint=_MINE
        ) from None
    pending = [(name, root)]
    while pending:
        shown, descriptor = pending.pop()
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    seen += 1
                    folder = entry.is_dir(follow_symlinks=False)
                    # A named pipe as well: Git would wait for its writer.
                    plain = folder or entry.is_file(follow_symlinks=False)
                    if not plain or seen > _MAX_ENTRIES:
                        what = "contains too many files" if plain else "is a link, a pipe or a device"
                        raise UsageError(f".git: {shown}/{entry.name} {what}", where=str(top.path), hint=_MINE)
                    if name == "refs" and not folder and entry.stat(follow_symlinks=False).st_size > _MAX_REF:
                        what = f"is larger than {_MAX_REF} bytes"
                        raise UsageError(f".git: {shown}/{entry.name} {what}", where=str(top.path), hint=_MINE)
                    if folder:
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        pending.append((f"{shown}/{entry.name}", os.open(entry.name, flags, dir_fd=descriptor)))
        except BaseException:
            for _, one in pending:
                os.close(one)
            raise
        finally:
            os.close(descriptor)


def _refuse_alternates(objects: Path, top: Place, depth: int, seen: set[Path]) -> None:
    """Alternate objects must be in the workspace too, as files. Otherwise the id of a commit would suffice to read
    another project. Folders in `seen` are not read again: a few that name each other many times would take for ever."""
    if objects in seen:
        return
    seen.add(objects)
    for line in _read_alternates(objects, top):
        borrowed = Path(os.path.normpath(objects / line)).resolve()
        if depth > _MAX_ALTERNATES or not borrowed.is_relative_to(top.root.resolve()):
            raise UsageError(
                f"the repository uses objects of {borrowed}, which is outside of the workspace",
                where=str(top.path),
                hint=_COPY_OBJECTS,
            )
        if os.path.lexists(borrowed):
            with open_folder(Place(borrowed.parent)) as above:
                _refuse_links(borrowed.name, above, top)
        _refuse_alternates(borrowed, top, depth + 1, seen)


def _read_alternates(objects: Path, top: Place) -> list[str]:
    """The paths in `objects/info/alternates`, as Git reads them. UsageError for a file that could be read otherwise."""
    try:
        with open_folder(Place(objects), ("info",)) as info:
            raw = read_own(info, "alternates", _MAX_POINTER + 1, top) or b""
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(
            f"{objects}/info cannot be opened as a folder: {error.strerror}", where=str(top.path), hint=_MINE
        ) from None
    lines = [line for line in raw.split(b"\n") if line and not line.startswith(b"#")]
    # Git takes quotes off a path, and ends at a NUL.
    if len(raw) > _MAX_POINTER or b"\0" in raw or any(line.startswith(b'"') for line in lines):
        raise UsageError(
            f"{objects}/info/alternates is longer than {_MAX_POINTER} bytes, or has a path in quotes",
            where=str(top.path),
            hint=_COPY_OBJECTS,
        )
    return [os.fsdecode(line) for line in lines]
