"""Commits and review comments for an existing instance, beside a run or outside of one: for `push`, programs and the
MCP server."""

from __future__ import annotations

from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.push import Push, Pushed, push_to
from ktrdr_vm.host.git import open_view
from ktrdr_vm.host.repository import find_commit, find_repository
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.profile.model import Workspace


def push_into(loaded: LoadedInstance, ref: str, *, branch: str = "", comments: bytes = b"", expect: str = "") -> Pushed:
    """Push a commit of the repository of its workspace. `ref` is a word for Git; it is empty for comments alone.

    A run may hold the instance meanwhile: Git in the guest changes each ref in one step. UsageError if `expect` is set
    and not the revision of the instance.
    """
    workspace = find_workspace(loaded)
    loaded.target.refuse_suspended()
    repository = find_repository(Path(loaded.plan.facts.workspace), workspace.source)
    commit = ""
    if ref:
        with open_view(repository.place) as view:
            commit = find_commit(view, ref, "REF")
    loaded.require_revision(expect)
    return push_to(repository, Push(commit, branch, comments), workspace.target, loaded.connect())


def find_workspace(loaded: LoadedInstance) -> Workspace:
    """The workspace of an instance that has a repository in its guest. UsageError for one without, or with a mounted
    folder."""
    workspace = loaded.plan.profile.workspace
    if workspace is None or workspace.transfer == "mount":
        raise UsageError(
            "the instance has no repository of its own",
            where=loaded.instance_id,
            hint="its profile needs `workspace` with `transfer: copy`; a mounted folder shows what the host writes",
        )
    return workspace
