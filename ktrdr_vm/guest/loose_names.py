"""Which files of a working tree no commit has, by name: what Git's status shows, what its index hides, and what
`include` names."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ktrdr_vm.errors import UsageError, keep_end
from ktrdr_vm.guest.workspace_parts import GITLINK
from ktrdr_vm.host.git import BOUNDS, View, open_view
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.profile.model import Profile, Workspace
from ktrdr_vm.profile.personal import find_personal


def find_uncommitted(view: View, commit: str) -> tuple[list[str], list[str]]:
    """Tracked files that differ from the commit, and those that are gone."""
    options = ("--name-status", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules", "-z")
    refuse_special(view)
    with tempfile.TemporaryFile() as listed:
        done = view.git("diff", *options, commit, "--", stdout=listed.fileno(), bounds=BOUNDS, check=False)
        if done.exit_code != 0:
            raise UsageError(
                "the uncommitted changes cannot be listed: they, or the files of the commit, are too large or too many"
                + (f": {keep_end(done.error_text, 200)}" if done.error_text else ""),
                where=f"the workspace, compared with {commit[:12]}",
                hint="`git status` shows them: commit or remove them, or set workspace.uncommitted to ignore",
            )
        listed.seek(0)
        # Bytes as they are: a name that is not UTF-8 is still a file's name.
        words = os.fsdecode(listed.read()).split("\0")[:-1]
    pairs = list(zip(words[0::2], words[1::2], strict=True))
    return [name for status, name in pairs if status != "D"], [name for status, name in pairs if status == "D"]


def refuse_special(view: View) -> None:
    """UsageError if a `.gitattributes` that Git would read is a pipe or a device: it would wait, or read without end.

    Git reads those of the folders of tracked files when it compares the working tree.
    """
    listed = os.fsdecode(view.git("ls-files", "-z").stdout).split("\0")
    folders = {name.rpartition("/")[0] for name in listed}
    folders |= {folder.rsplit("/", depth)[0] for folder in folders for depth in range(folder.count("/") + 1)}
    for folder in sorted(folders):
        name = f"{folder}/.gitattributes" if folder else ".gitattributes"
        try:
            mode = os.stat(name, dir_fd=view.checkout.top, follow_symlinks=False).st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UsageError(
                f"{name} is neither a file nor a folder", where="the workspace", hint=f"remove it: rm {name}"
            )


def find_new_submodules(view: View, commit: str) -> list[str]:
    """Paths of submodules that the index has, and the commit has not."""
    options = ("--cached", "--raw", "--no-renames", "--diff-filter=AT", "-z")
    words = os.fsdecode(view.git("diff-index", *options, commit, "--", bounds=BOUNDS).stdout).split("\0")[:-1]
    pairs = zip(words[0::2], words[1::2], strict=True)
    return [name for change, name in pairs if change.split(" ")[1] == GITLINK]


def _find_submodule(view: View, pattern: str) -> str:
    """The submodule that the paths of a pattern are in; empty if they are in none."""
    listed = os.fsdecode(view.git("ls-files", "--stage", "-z").stdout).split("\0")
    paths = (line.partition("\t")[2] for line in listed if line.startswith(f"{GITLINK} "))
    return next((path for path in paths if pattern.startswith(f"{path}/")), "")


def find_included(view: View, workspace: Workspace, repository: Repository, note: Callable[[str], None]) -> list[str]:
    """Files that Git does not know. A pattern that brings nothing is named, as is a repository in the repository: Git
    enters none."""
    found: list[str] = []
    for one in workspace.include:
        names = _list_untracked(view, one)
        for name in names:
            if name.endswith("/"):
                note(f"{name} was left out of the workspace: it is a repository of its own")
        files = [name for name in names if not name.endswith("/")]
        if not names and (submodule := _find_submodule(view, one)):
            note(
                f"workspace.include: {one} was not copied: it is in the submodule {submodule}, and untracked files of"
                " submodules are not copied"
            )
        elif not names and not view.git("ls-files", "-z", "--", f":(glob){one}").stdout:
            meant = f"{_find_prefix(workspace, repository)}{one}"
            advice = f"; did you mean {meant}?" if meant != one and _list_untracked(view, meant) else ""
            note(f"workspace.include: {one} names no file of the workspace, from its top, {repository.root}{advice}")
        found += files
    return _leave_personal(list(dict.fromkeys(found)), note)


def _list_untracked(view: View, glob: str) -> list[str]:
    return [
        name
        for name in os.fsdecode(view.git("ls-files", "--others", "-z", "--", f":(glob){glob}").stdout).split("\0")
        if name
    ]


def _find_prefix(workspace: Workspace, repository: Repository) -> str:
    """The path of `workspace.source` in its repository, with a closing slash; empty for the top."""
    source = Path(os.path.normpath((repository.workspace or repository.root) / workspace.source))
    return (
        f"{source.relative_to(repository.root)}/"
        if source != repository.root and source.is_relative_to(repository.root)
        else ""
    )


def _leave_personal(names: list[str], note: Callable[[str], None]) -> list[str]:
    """Omit personal files, as for mounts. Committed files are copied with the history."""
    for name in names:
        if personal := find_personal(name.split("/")):
            note(
                f"{name} was not copied into the workspace: a personal folder or file ({personal}) is never copied into"
                " a sandbox"
            )
    return [name for name in names if not find_personal(name.split("/"))]


def find_unwatched(view: View) -> tuple[list[str], list[str], int]:
    """Files that Git's status leaves out although they may differ: those that are there, those that are gone, and how
    many are sparse.

    They are marked in the index: `assume-unchanged`, or `skip-worktree` as in a sparse checkout or by hand.
    """
    there: list[str] = []
    gone: list[str] = []
    sparse = 0
    for line in os.fsdecode(view.git("ls-files", "-v", "-z").stdout).split("\0"):
        tag, name = line[:1], line[2:]
        if tag not in ("S", "s") and not tag.islower():
            continue
        if _is_there(name, view.checkout.top):
            there.append(name)
        elif tag in ("S", "s"):
            sparse += 1
        else:
            gone.append(name)
    return there, gone, sparse


def _is_there(name: str, top: int) -> bool:
    try:
        os.stat(name, dir_fd=top, follow_symlinks=False)
    except OSError:
        return False
    return True


def list_beneath(repository: Repository, profile: Profile) -> tuple[str, ...]:
    """What the fresh VM will have besides the commits of the workload, in words; empty if there is no fresh VM."""
    workspace = profile.workspace
    if workspace is None or not profile.is_verified_apart:
        return ()
    changed: list[str] = []
    if workspace.uncommitted == "include":
        with open_view(repository.place) as view:
            changed = sorted(name for names in find_uncommitted(view, repository.commit) for name in names)
    shown = f"uncommitted changes ({shorten(changed)})"
    return (*((shown,) if changed else ()), *(f"untracked files that match {pattern}" for pattern in workspace.include))


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and how many there are besides."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
