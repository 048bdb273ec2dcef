"""The inputs of `ktrdr-vm verify`: a commit of the repository, judged by the profile and the playbooks of its base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.commits import list_changed
from ktrdr_vm.host.git import COMMIT, REF, View, open_view
from ktrdr_vm.host.paths import Home, find_shipped_profile
from ktrdr_vm.host.repository import Repository, find_commit, find_repository
from ktrdr_vm.identity import derive_instance_id, derive_verification_id, parse_instance_id
from ktrdr_vm.inputs.committed_files import write_files
from ktrdr_vm.inputs.profile_file import PROFILE_NAME, find_top
from ktrdr_vm.inputs.resolve import Base, Gathered, gather_profile, read_profile
from ktrdr_vm.inputs.trusted import find_trusted, load_committed
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.profile.load import LoadedProfile, build_profile

# As in the fresh VM after a workload: no workload and no secrets. A prepared project is found by the working tree,
# which is not used.
_LEFT_OUT = ("workload", "secrets", "verify", "prepare")


@dataclass(frozen=True)
class Question:
    """What is to be judged by what. `ref` and `base` are words for Git; without `base` it is the merge base with the
    trusted branch.

    `profile` is a file of the base, or the name of a shipped profile.
    """

    ref: str = "HEAD"
    base: str = ""
    profile: str = PROFILE_NAME


@contextlib.contextmanager
def gather_ref(
    question: Question, *, home: Home, folder: Path, instance_id: str | None = None, gates: tuple[str, ...] = ()
) -> Iterator[Gathered]:
    """The inputs of a run that judges a commit. They are valid in the block, because the files of the base are in a
    temporary folder.

    `folder` is in the repository, whose working tree is not read. UsageError if the commit, the base or the profile is
    missing.
    """
    top = find_top(folder.resolve()) or folder
    repository = find_repository(top)
    with open_view(repository.place) as view:
        commit = find_commit(view, question.ref, "REF")
        base = find_commit(view, question.base, "--base") if question.base else _find_base(view, commit, repository)
        ref = _name(view, question.ref)
        loaded = _load(view, base, question.profile, top)
        changed = list_changed(view, base, commit)
        with write_files(view, base) as root:
            branch = ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else ""
            judged = replace(repository, commit=commit, branch=branch, ref="HEAD")
            _adapt(loaded)
            identity = (
                parse_instance_id(instance_id)
                if instance_id is not None
                else derive_verification_id(derive_instance_id(repository.name, f"{branch or commit[:12]}-commit"))
            )
            made = Base(base, question.base or "merge base", root, ref or commit, changed)
            gathered = gather_profile(
                loaded, home=home, workspace=top, instance_id=identity.instance_id, gates=gates, base=made
            )
            if not gathered.playbooks:
                raise UsageError(
                    "there is no gate to judge by",
                    where=loaded.source,
                    hint="add `gates` to the profile, or use --gate",
                )
            if gathered.repository is None or gathered.repository.root != repository.root:
                raise UsageError(
                    "the workspace of the profile is another repository",
                    where=loaded.source,
                    hint="set workspace.source to `.` in the base",
                )
            plan = gathered.plan
            facts = replace(plan.facts, base_commit=commit, base_ref=branch or ref or commit)
            yield replace(gathered, plan=Plan(plan.profile, facts, plan.identity, plan.source), repository=judged)


def _name(view: View, word: str) -> str:
    """The full name of the ref that a word names; empty for a commit by its id, and for a name that Git's commands
    could misread."""
    found = view.git(
        "rev-parse", "--symbolic-full-name", "--verify", "--quiet", "--end-of-options", word, check=False
    ).text.strip()
    return found if REF.fullmatch(found) else ""


def _find_base(view: View, commit: str, repository: Repository) -> str:
    trusted = find_trusted(view, read_policy(), repository)
    if not trusted:
        raise UsageError(
            "the repository has no trusted branch: neither one of the owner's policy, nor that of origin, nor main or"
            " master",
            where=str(repository.root),
            hint="name the commit whose profile and playbooks judge with --base",
        )
    found = view.git("merge-base", trusted, commit, check=False).text.split()
    if not found or not COMMIT.fullmatch(found[0]):
        raise UsageError(
            f"the commit {commit[:12]} has no common history with the trusted branch ({trusted[:12]})",
            where=str(repository.root),
            hint="name a base with --base; in a shallow clone, fetch the whole history first: `git fetch --unshallow`",
        )
    return found[0]


def _load(view: View, base: str, name: str, top: Path) -> LoadedProfile:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(
            f"{name!a} is not a path in the repository", where="--profile", hint="name a file of the base commit"
        )
    exists = view.git("cat-file", "-e", "--end-of-options", f"{base}:{name}", check=False).exit_code == 0
    shipped = find_shipped_profile(name)
    if not exists and shipped is not None:
        return read_profile(shipped, top)
    if not exists:
        raise UsageError(
            f"the base commit {base[:12]} has no profile {name}",
            where="--profile",
            hint=(
                "commit one to the trusted branch (`ktrdr-vm init` writes it), or name another with --profile, or"
                " another --base"
            ),
        )
    return load_committed(view, base, name)


def _adapt(loaded: LoadedProfile) -> None:
    """The profile of a fresh VM: a sandbox with the commit alone."""
    if loaded.profile.workspace is None:
        raise UsageError(
            "the profile has no workspace, so no commit would be judged",
            where=loaded.source,
            hint="add `workspace: {source: .}` to it",
        )
    data: dict[str, Any] = {key: value for key, value in loaded.data.items() if key not in _LEFT_OUT}
    data |= {"mode": "sandbox", "workspace": {**(data.get("workspace") or {}), "uncommitted": "ignore", "include": []}}
    loaded.data, loaded.profile = data, build_profile(data)
