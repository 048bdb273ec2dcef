"""The profile on the trusted branch, and what the current one allows in addition.

An agent may have written the current branch. If no policy limits the destinations of secrets, a person must confirm
destinations that the trusted branch does not have.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

from ktrdr_vm.errors import DocumentError, KtrdrError, UsageError
from ktrdr_vm.host.git import COMMIT, View, open_view, read_symbolic_ref
from ktrdr_vm.host.paths import find_shipped_folder, find_shipped_profile
from ktrdr_vm.host.repository import Repository, find_repository
from ktrdr_vm.inputs.profile_file import find_top
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.policy.reach import Reach, find_beyond
from ktrdr_vm.profile.load import LoadedProfile, load_profile
from ktrdr_vm.profile.model import Profile
from ktrdr_vm.profile.strict_yaml import MAX_BYTES

_DEFAULTS = ("main", "master")


def list_refs(policy: OwnerPolicy, repository: Repository) -> tuple[str, ...]:
    """The trusted branches of this repository in the owner's policy; none if it does not list the repository."""
    common = repository.common
    places = {repository.root.resolve()} | ({common.parent if common.name == ".git" else common} if common else set())
    return tuple(
        dict.fromkeys(ref for one in policy.projects if Path(one.path).resolve() in places for ref in one.refs)
    )


def compare(loaded: LoadedProfile, repository: Repository | None, policy: OwnerPolicy) -> tuple[Reach, ...]:
    """What the profile allows in addition to the same file on a trusted branch.

    `repository` is that of the workspace. Empty for a profile that no repository has, on a trusted branch, and without
    a trusted branch.
    """
    source = Path(loaded.source).absolute()
    with contextlib.suppress(OSError):
        source = source.parent.resolve() / source.name
    if repository is None or not source.is_relative_to(repository.root):
        # The branch may have chosen that: by a profile without a workspace, or with another repository inside of it.
        repository = _find_own(source)
    if repository is None:
        return ()
    refs = list_refs(policy, repository) or policy.prepare_refs
    if repository.branch in refs:
        return ()
    with open_view(repository.place) as view:
        commit, branch = _find_first(view, refs)
        # Of the usual names one is trusted: in a clone whose default branch is main, an agent may name its own master.
        if not refs and branch == repository.branch:
            return ()
        # Also at the same commit: the profile is the file of the working tree, which may have been changed.
        if not commit:
            return ()
        before = _read_profile(view, commit, str(source.relative_to(repository.root)))
    return find_beyond(loaded.profile, before)


def _find_own(source: Path) -> Repository | None:
    """The repository that has the profile itself; None for a shipped one, outside of a repository, and without a
    commit."""
    top = None if source.is_relative_to(find_shipped_folder() / "profiles") else find_top(source.parent)
    with contextlib.suppress(KtrdrError):
        return find_repository(top) if top is not None else None
    return None


def require_accepted(beyond: tuple[Reach, ...], where: str) -> None:
    """UsageError if a secret could be sent to a destination that the trusted branch does not have."""
    carried = [one.text for one in beyond if one.carries]
    if carried:
        raise UsageError(
            "the profile of this branch allows more for secrets than that of the trusted branch:"
            f" {'; '.join(carried[:5])}",
            where=where,
            hint=(
                "review it and use --accept-changes, or merge it; secrets.uses in the owner's policy limits"
                " destinations of secrets"
            ),
        )


def _find_first(view: View, branches: tuple[str, ...]) -> tuple[str, str]:
    """The commit and the name of the first of the branches that exists; empty if none does. They are asked in one call.

    Without branches: the default branch of origin at the clone, else main or master.
    """
    places = ("refs/heads", "refs/remotes/origin")
    refs = {f"{place}/{branch}": branch for branch in branches or _DEFAULTS for place in places}
    if not branches:
        default = read_symbolic_ref(view, "refs/remotes/origin/HEAD").removeprefix("refs/remotes/origin/")
        refs = {"refs/remotes/origin/HEAD": default, **refs}
    words = "".join(f"{ref}^{{commit}}\n" for ref in refs)
    listed = view.git("cat-file", "--batch-check=%(objectname)", stdin=os.fsencode(words), check=False)
    for branch, line in zip(refs.values(), listed.text.split("\n"), strict=False):
        if COMMIT.fullmatch(line):
            return line, branch
    return "", ""


def find_trusted(view: View, policy: OwnerPolicy, repository: Repository) -> str:
    """The commit of the trusted branch of the repository; empty if there is none."""
    return _find_first(view, list_refs(policy, repository) or policy.prepare_refs)[0]


def _read_profile(view: View, commit: str, path: str) -> Profile | None:
    """The profile on that branch; None if it does not exist or is not valid in this version."""
    try:
        return load_committed(view, commit, path).profile
    except (DocumentError, KtrdrError):
        return None


def load_committed(view: View, commit: str, path: str) -> LoadedProfile:
    """The profile at `path` of a commit, with those that it extends. UsageError or DocumentError if there is none, or
    if it is invalid."""

    def read(name: str) -> bytes:
        word = f"{commit}:{name}"
        size = view.git("cat-file", "-s", "--end-of-options", word, check=False).text.strip()
        if not size.isdigit() or int(size) > MAX_BYTES:
            raise UsageError(
                "the commit does not have this file",
                where=word,
                hint="commit it on the trusted branch, or name another base",
            )
        return view.git("cat-file", "blob", "--end-of-options", word).stdout

    def read_parent(reference: str, source: str) -> tuple[str, bytes]:
        parts = PurePosixPath(source).parent / reference
        if ".." not in PurePosixPath(reference).parts:
            with contextlib.suppress(KtrdrError):
                return str(parts), read(str(parts))
        shipped = find_shipped_profile(reference)
        if shipped is None:
            raise UsageError(
                f"the commit does not have {reference}", where=source, hint="commit it on the trusted branch"
            )
        return str(shipped), shipped.read_bytes()

    return load_profile(read(path), path, read_parent)
