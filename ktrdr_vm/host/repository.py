"""A person's Git repository as it stands: which one a folder belongs to, and what its refs name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import Place, find_place
from ktrdr_vm.host.checkout import find_top
from ktrdr_vm.host.git import COMMIT, open_view


@dataclass(frozen=True)
class Repository:
    """A checked-out Git repository as it stands. `branch` is empty on a detached HEAD.

    `ref`, when given, is where `commit` is taken from instead, as for commits that came back from a guest. `workspace` is the folder
    that a person named, from which the repository is opened each time; `common` is the resolved folder of its objects and refs.
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
    """The repository of the folder `source` of a workspace. UsageError when there is none, no commit in it, or it lies elsewhere.

    `directory` is what a person named, links in it count. `source` is a profile's: it is opened from there without following any.
    """
    if not directory.is_dir():
        raise UsageError("the workspace is no folder that can be opened", where=str(directory), hint="name a folder with --workspace")
    workspace = directory.resolve()
    place = Place(workspace).join(source)
    top = find_top(place)
    with open_view(top) as view:
        found = view.git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
        commit = found.text.strip()
        if found.exit_code != 0 or not COMMIT.fullmatch(commit):
            raise UsageError(
                f"the workspace is no Git repository with a commit: {found.error_text[-200:] or 'HEAD names none'}",
                where=str(top.path),
                hint="commit something, or name another folder with --workspace; a partial clone is made whole by `git fetch --refetch`",
            )
        # A linked worktree lies anywhere; the repository's name is the main one's.
        common = view.checkout.common_path
        branch = view.checkout.head.removeprefix("ref: refs/heads/") if view.checkout.head.startswith("ref: refs/heads/") else ""
        name = common.parent.name if common.name == ".git" else common.name.removesuffix(".git")
        return Repository(top.path, branch, commit, view.checkout.owner, name, workspace=workspace, common=common)


def resolve_commit(repository: Repository, word: str) -> str:
    """The commit that a ref or a commit's id stands for; empty when there is none. `word` is one that `require_ref` or `_commit` let by."""
    with open_view(repository.place) as view:
        found = view.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}", check=False).text.strip()
    return found if COMMIT.fullmatch(found) else ""
