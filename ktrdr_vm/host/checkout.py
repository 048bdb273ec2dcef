"""A checked-out Git repository: where its parts lie, found without Git and without a link, so that none of another one's come along.

Git would go up to any folder above and believe every pointer: a `.git` that is a link, a file that names another repository's folder,
objects borrowed from somewhere. Here a repository's parts are its own, or those of the main one that knows it as its worktree.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import Place, open_folder, open_named_folder, open_regular

_MAX_POINTER = 8192
_MAX_ENTRIES = 2_000_000
_HEAD = re.compile(r"ref: refs/[^\x00-\x20\x7f~^:?*\[\\]+|[0-9a-f]{40}|[0-9a-f]{64}")
_MINE = "make it a repository of its own: `git clone` it, and name the clone with --workspace"


@dataclass(frozen=True)
class Checkout:
    """Open folders of one repository, as descriptors: the top of the working tree, what has HEAD and index, what has objects and refs."""

    top: int
    git_dir: int
    common: int
    common_path: Path
    head: str
    owner: tuple[int, int]


def find_top(place: Place) -> Place:
    """The folder with the `.git` that `place` belongs to: itself, or one above it up to its root. UsageError when there is none."""
    inner = place
    while True:
        # Opened by its name again: what was a folder a moment ago may be a link by now.
        with open_named_folder(inner, "workspace") as folder:
            if _is_there(".git", folder):
                return inner
        if not inner.parts:
            break
        inner = inner.parent
    above = next((path for path in place.root.parents if os.path.lexists(path / ".git")), None)
    if above is not None:
        raise UsageError(
            f"the workspace is a folder of a repository whose top lies above it, {above}",
            where=str(place.path),
            hint=f"name the whole repository: --workspace {os.path.relpath(above, place.root)}",
        )
    raise UsageError(
        "the workspace is no Git repository with a commit",
        where=str(place.path),
        hint="run `git init` and commit, or name another folder with --workspace",
    )


@contextlib.contextmanager
def open_checkout(top: Place) -> Iterator[Checkout]:
    """Open a repository's folders. UsageError where a part of it is a link or another repository's."""
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
                raise UsageError(
                    "the repository and its working tree belong to different users",
                    where=str(top.path),
                    hint="chown both to one user",
                )
        _refuse_borrowed(common, common_path, top)
        head = (_read_text(git_dir, "HEAD", top) or "").strip()
        if not _HEAD.fullmatch(head):
            raise UsageError("the repository's HEAD is no branch and no commit", where=str(top.path), hint="`git checkout` a branch")
        yield Checkout(folder, git_dir, common, common_path, head, (facts.st_uid, facts.st_gid))


def read_own(folder: int, name: str, limit: int, top: Place) -> bytes | None:
    """A regular file of a repository's folder; None when it is not there. UsageError for a link."""
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
    """What a `.git` that is a file says; None when it is a folder."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return None
    text = _read_text(folder, name, top) or ""
    if not text.startswith("gitdir: "):
        raise UsageError(".git is neither a folder nor a worktree's file", where=str(top.path), hint=_MINE)
    return text.removeprefix("gitdir: ").rstrip("\n")


def _follow_pointer(pointer: str, folder: int, top: Place, held: contextlib.ExitStack) -> tuple[int, int, Path]:
    """The folders of a linked worktree or a submodule. The other side must know this working tree as its own."""
    named = Path(os.path.normpath(top.path / pointer)).resolve()
    git_dir = held.enter_context(_open_git(Place(named)))
    if named.parent.name == "worktrees":
        back = Path((_read_text(git_dir, "gitdir", top) or "").strip())
        known, common_path = named / back.parent, named.parent.parent
        common = held.enter_context(_open_git(Place(common_path)))
    else:
        known, common, common_path = named / _read_worktree(git_dir, top), git_dir, named
    if not _is_same(known, folder):
        raise UsageError(f"the repository at {named} does not know this folder as its working tree", where=str(top.path), hint=_MINE)
    return git_dir, common, common_path


def _read_worktree(git_dir: int, top: Place) -> str:
    """`core.worktree`, as Git writes it into a submodule's own configuration. Nothing else is looked for in it here."""
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
    """Objects and refs are the repository's own files: no link among them, none borrowed from outside."""
    for name in ("objects", "refs"):
        _refuse_links(name, common, top)
    for name in ("packed-refs", "shallow"):
        read_own(common, name, 0, top)
    _refuse_alternates(common_path / "objects", top, 0)


def _refuse_links(name: str, common: int, top: Place) -> None:
    seen = 0
    try:
        root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=common)
    except OSError as error:
        raise UsageError(f".git: {name} is no folder of its own: {error.strerror}", where=str(top.path), hint=_MINE) from None
    pending = [(name, root)]
    while pending:
        shown, descriptor = pending.pop()
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_symlink() or seen > _MAX_ENTRIES:
                        what = "is a link" if entry.is_symlink() else "holds too many files"
                        raise UsageError(f".git: {shown}/{entry.name} {what}", where=str(top.path), hint=_MINE)
                    if entry.is_dir(follow_symlinks=False):
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        pending.append((f"{shown}/{entry.name}", os.open(entry.name, flags, dir_fd=descriptor)))
        except BaseException:
            for _, one in pending:
                os.close(one)
            raise
        finally:
            os.close(descriptor)


def _refuse_alternates(objects: Path, top: Place, depth: int) -> None:
    """Objects that are borrowed must lie in the workspace, too: else a commit's name would be enough to bring another project in."""
    try:
        with open_folder(Place(objects), ("info",)) as info:
            text = _read_text(info, "alternates", top) or ""
    except FileNotFoundError:
        return
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        borrowed = Path(os.path.normpath(objects / line)).resolve()
        if depth > 4 or not borrowed.is_relative_to(top.root.resolve()):
            raise UsageError(
                f"the repository borrows objects from {borrowed}, which lies outside of the workspace",
                where=str(top.path),
                hint="`git repack -a -d && rm .git/objects/info/alternates` gives it copies of its own",
            )
        _refuse_alternates(borrowed, top, depth + 1)
