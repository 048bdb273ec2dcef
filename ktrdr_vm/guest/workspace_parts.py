"""What belongs to a workspace besides its branch: tags, the default branch, and submodules."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ktrdr_vm.errors import UsageError, keep_end
from ktrdr_vm.host.git import View, open_view
from ktrdr_vm.host.repository import Repository, find_repository, resolve_commit

# Tags that come along, the newest first: a version is read from one of the last.
MOST_TAGS = 1000
_DEFAULTS = ("main", "master")
GITLINK = "160000"
# For the names of all files of a commit, of which a few hundred bytes of trees can have 10^12.
_LISTING = ("prlimit", "--data=1073741824", "--cpu=120", "--fsize=268435456", "--")


def find_other_refs(view: View, commit: str) -> tuple[str, list[str]]:
    """The default branch's name where the host has a local one, and the refs that come along with `commit`.

    These are the tags of its history, and the default branch by its local and its remote-tracking name.
    """
    options = ("--sort=-creatordate", f"--count={MOST_TAGS}", f"--merged={commit}", "--format=%(refname)")
    refs = [ref for ref in view.git("for-each-ref", *options, "refs/tags").text.split("\n") if ref]
    there = _read_refs(view, ["refs/remotes/origin/HEAD", *_name_both(*_DEFAULTS)])
    # What a clone takes for the default branch, where it says so.
    head = there.get("refs/remotes/origin/HEAD", "").removeprefix("refs/remotes/origin/")
    if head and head not in _DEFAULTS:
        there |= _read_refs(view, _name_both(head))
    names = [name for name in (head, *_DEFAULTS) if name]
    default = next((name for name in names if f"refs/heads/{name}" in there), "")
    remote = next((name for name in names if f"refs/remotes/origin/{name}" in there), "")
    refs += [f"refs/remotes/origin/{remote}"] if remote else []
    refs += [f"refs/heads/{default}"] if default else []
    return default, refs


def find_hidden(view: View, refs: list[str]) -> dict[str, str]:
    """Those of the full names that Git could also take for the short name of another ref, each with that ref: a bundle
    leaves them out. A branch `refs/heads/main` beside `main` is one."""
    others = {f"{where}/{ref}": ref for ref in refs for where in ("refs", "refs/tags", "refs/heads", "refs/remotes")}
    listed = view.git("for-each-ref", "--format=%(refname)", *others).text.splitlines()
    return {others[one]: one for one in listed if one in others}


def _name_both(*names: str) -> list[str]:
    return [f"{where}/{name}" for name in names for where in ("refs/heads", "refs/remotes/origin")]


def _read_refs(view: View, refs: list[str]) -> dict[str, str]:
    """Those of the refs that name a commit which is there, with what they point to where they are symbolic.

    After an interrupted fetch, or of an object that was lost, a ref may name nothing.
    """
    listed = view.git("for-each-ref", "--format=%(refname)%00%(symref)", *refs).text
    found = (line.partition("\0") for line in listed.splitlines() if line)
    named = {ref: target for ref, _, target in found if ref in refs}
    asked = "".join(f"{ref}^{{commit}}\n" for ref in named).encode()
    answers = view.git("cat-file", "--batch-check=%(objecttype)", stdin=asked).text.splitlines() if named else []
    return {ref: target for (ref, target), kind in zip(named.items(), answers, strict=True) if kind == "commit"}


def list_submodules(view: View, repository: Repository, note: Callable[[str], None]) -> list[tuple[str, Repository]]:
    """Path and repository of each submodule of the commit. One that cannot be copied is named in a note, and stays
    empty."""
    found = []
    for line in _list_gitlinks(view, repository):
        recorded, path = line.removeprefix(f"{GITLINK} commit ").split("\t", 1)
        submodule = _open(repository, view.checkout.common_path, path, recorded, note)
        if submodule is not None:
            found.append((path, submodule))
    return found


def _list_gitlinks(view: View, repository: Repository) -> Iterator[str]:
    """The lines of `ls-tree` about submodules. UsageError if the names of all files take more than 256 MiB."""
    with tempfile.TemporaryFile() as listed:
        words = ("ls-tree", "-r", "-z", "--full-tree", repository.commit)
        done = view.apart.git(*words, stdout=listed.fileno(), bounds=_LISTING, check=False)
        if done.exit_code != 0:
            raise UsageError(
                "the files of the commit cannot be listed: it has too many, or objects of it are missing"
                + (f": {keep_end(done.error_text, 200)}" if done.error_text else ""),
                where=f"{repository.root}, commit {repository.commit[:12]}",
                hint="check the repository with `git fsck`",
            )
        listed.seek(0)
        rest = b""
        while piece := listed.read(1 << 20):
            *lines, rest = (rest + piece).split(b"\0")
            yield from (os.fsdecode(line) for line in lines if line.startswith(GITLINK.encode()))


def _open(
    repository: Repository, common: Path, path: str, recorded: str, note: Callable[[str], None]
) -> Repository | None:
    try:
        found = find_repository(repository.root, path)
    except UsageError as error:
        note(f"the submodule {path} is empty in the guest: {error.message}")
        return None
    if found.root != repository.root / path:
        note(
            f"the submodule {path} is empty in the guest: it is not checked out on the host; run `git submodule update"
            f" --init {path}`"
        )
        return None
    # A commit can name any folder as a submodule. Only what `git submodule` made on this host is one; another clone
    # that lies in the workspace stays out, whatever the commit says.
    if not _is_submodule_of(common, found):
        note(
            f"the submodule {path} is empty in the guest: its repository is not in .git/modules; run `git submodule"
            " absorbgitdirs`"
        )
        return None
    # The host's HEAD has it in its history, or the bundle would not have it either.
    if not resolve_commit(found, recorded) or not _is_ancestor(found, recorded):
        note(
            f"the submodule {path} is empty in the guest: the host's copy does not have {recorded[:12]}; run `git"
            f" submodule update {path}`"
        )
        return None
    return replace(found, commit=recorded, branch=found.branch if found.commit == recorded else "")


def _is_submodule_of(common: Path, found: Repository) -> bool:
    """True if its Git folder lies where Git puts those of submodules, also of a linked worktree's."""
    if found.common is None or not found.common.is_relative_to(common):
        return False
    inner = found.common.relative_to(common).parts
    return inner[:1] == ("modules",) or (inner[:1] == ("worktrees",) and inner[2:3] == ("modules",))


def _is_ancestor(repository: Repository, commit: str) -> bool:
    with open_view(repository.place) as view:
        return view.git("merge-base", "--is-ancestor", commit, repository.commit, check=False).exit_code == 0
