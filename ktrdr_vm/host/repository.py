"""The Git repository of a user: the one to which a folder belongs, and its refs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import UsageError, keep_end
from ktrdr_vm.host.beneath import Place, find_place
from ktrdr_vm.host.checkout import find_top
from ktrdr_vm.host.git import COMMIT, COMPLETE, View, open_view


@dataclass(frozen=True)
class Repository:
    """The state of a checked-out Git repository. `branch` is empty on a detached HEAD.

    `ref`, if set, is the source of `commit` instead, as for commits that were fetched from a guest; HEAD is `commit`
    itself. `workspace` is the folder that a user named, from which the repository is opened each time; `common` is the
    resolved folder of its objects and refs.
    """

    root: Path
    branch: str
    commit: str
    owner: tuple[int, int]
    name: str
    ref: str = ""
    workspace: Path | None = None
    common: Path | None = None

    @property
    def place(self) -> Place:
        return find_place(self.root, (self.workspace or self.root,))


def find_repository(directory: Path, source: str = ".") -> Repository:
    """The repository of the folder `source` of a workspace. UsageError if there is none, if it has no commit, or if it
    is elsewhere.

    `directory` was named by a user, so its links are followed. `source` is from a profile: it is opened without
    following links.
    """
    if not directory.is_dir():
        raise UsageError(
            "the workspace cannot be opened as a folder", where=str(directory), hint="name a folder with --workspace"
        )
    workspace = directory.resolve()
    place = Place(workspace).join(source)
    top = find_top(place)
    with open_view(top) as view:
        found = view.git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
        commit = found.text.strip()
        if found.exit_code != 0 or not COMMIT.fullmatch(commit):
            raise UsageError(
                "the workspace is not a Git repository with a commit:"
                f" {keep_end(found.error_text, 200) or 'HEAD names none'}",
                where=str(top.path),
                hint=f"create a commit, or name another folder with --workspace; {COMPLETE} completes a partial clone",
            )
        # A linked worktree can be anywhere; the name is that of the main repository.
        common = view.checkout.common_path
        branch = (
            view.checkout.head.removeprefix("ref: refs/heads/")
            if view.checkout.head.startswith("ref: refs/heads/")
            else ""
        )
        name = common.parent.name if common.name == ".git" else common.name.removesuffix(".git")
        return Repository(top.path, branch, commit, view.checkout.owner, name, workspace=workspace, common=common)


def find_named(directory: Path, source: str = ".") -> Repository:
    """The same for a plan, whose documents contain the name of the branch: UsageError if it is not UTF-8."""
    found = find_repository(directory, source)
    try:
        found.branch.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name of the branch is not UTF-8: {found.branch[:200]!a}",
            where=str(found.root),
            hint="rename it with `git branch -m`, or check out its commit with `git checkout --detach`",
        ) from None
    return found


def resolve_commit(repository: Repository, word: str) -> str:
    """The commit of a ref or commit id; empty if there is none. `word` has passed `require_ref` or `require_commit`."""
    with open_view(repository.place) as view:
        found = view.git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}", check=False
        ).text.strip()
    return found if COMMIT.fullmatch(found) else ""


def find_commit(view: View, word: str, where: str) -> str:
    """The commit that a word of the caller names: a branch, a tag, an id. UsageError at `where` if it names none."""
    commit = ""
    if word.isprintable():
        commit = view.git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}", check=False
        ).text.strip()
    if not COMMIT.fullmatch(commit):
        raise UsageError(
            f"{word[:200]!a} names no commit of this repository",
            where=where,
            hint="name a branch, a tag or a commit; `git fetch` it first",
        )
    return commit
