"""Packing a request: the folder that is sent to a place, from a profile and the workspace of a person."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ktrdr_vm.errors import DocumentError, Problem, UsageError
from ktrdr_vm.guest.commits import is_branch_name
from ktrdr_vm.guest.loose_files import read_loose
from ktrdr_vm.guest.workspace import require_clean
from ktrdr_vm.host.beneath import check_name, find_place, open_file
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.git import COMMIT, View
from ktrdr_vm.host.paths import find_shipped
from ktrdr_vm.host.repository import Repository, find_named
from ktrdr_vm.identity import derive_instance_id, parse_instance_id
from ktrdr_vm.images.recipe import load_recipe
from ktrdr_vm.inputs.references import check_references, find_playbook, read_playbook
from ktrdr_vm.inputs.resolve import REFERENCE_HINT, read_profile
from ktrdr_vm.inputs.trusted import compare, require_accepted
from ktrdr_vm.places.history import History
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.request import DOCUMENT, FILES, UNCOMMITTED, Request, SentFile, digest_judged
from ktrdr_vm.places.secret_values import check_sent
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.profile.load import LoadedProfile
from ktrdr_vm.profile.model import Profile

# Seconds for the image, the boot and the teardown of one VM.
_AROUND = 900
# Where a short name is looked up, in this order.
_KINDS = ("heads", "tags", "remotes")


@dataclass(frozen=True)
class Asked:
    """What a person asks for. `who` is the person, for others who use the same place."""

    profile: Path
    workspace: Path
    who: str
    instance_id: str | None = None
    gates: tuple[str, ...] = ()
    cold: bool = False
    accept_changes: bool = False
    sent_secrets: tuple[str, ...] = ()
    warm: bool = False
    node: str = ""


def choose_refs(view: View, repository: Repository, refs: Sequence[str]) -> list[tuple[Repository, str]]:
    """For each branch or tag the repository at it instead of its HEAD, and the instance_id. UsageError if one does not
    exist."""
    names: list[str] = []
    for ref in refs:
        if is_branch_name(os.fsencode(ref)):
            names += [ref] if ref.startswith("refs/") else [f"refs/{kind}/{ref}" for kind in _KINDS]
    names = list(dict.fromkeys(names))
    asked = os.fsencode("".join(f"{name}^{{commit}}\n" for name in names))
    answers = view.git("cat-file", "--batch-check=%(objectname)", stdin=asked).text.splitlines() if names else []
    commits = {name: line for name, line in zip(names, answers, strict=True) if COMMIT.fullmatch(line)}
    chosen = []
    for ref in refs:
        name = next((name for name in (ref, *(f"refs/{kind}/{ref}" for kind in _KINDS)) if name in commits), "")
        if not name:
            raise UsageError(
                f"there is no branch or tag {ref!a:.100}",
                where=str(repository.root),
                hint="`git branch --all` and `git tag` list them",
            )
        branch = name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else ""
        at_ref = replace(repository, branch=branch, commit=commits[name], ref=name)
        chosen.append((at_ref, derive_instance_id(repository.name, ref.removeprefix("refs/heads/")).instance_id))
    return chosen


def find_base(asked: Asked, loaded: LoadedProfile) -> Repository | None:
    """The repository of the workspace; None if the profile has none."""
    workspace = loaded.profile.workspace
    return find_named(asked.workspace, workspace.source) if workspace else None


def check_profile(asked: Asked) -> LoadedProfile:
    """The profile, or DocumentError with everything in it that a place cannot have."""
    loaded = read_profile(asked.profile, asked.workspace)
    problems = [*check_references(loaded, asked.workspace.resolve(), gates=not asked.gates), *_find_local(loaded)]
    if problems:
        raise DocumentError(problems, hint=REFERENCE_HINT)
    return loaded


def _find_local(loaded: LoadedProfile) -> list[Problem]:
    profile, found = loaded.profile, []
    if profile.mode != "sandbox":
        found.append(
            loaded.problem(
                ("mode",), "an interactive instance runs on the host where it is used; a place runs sandboxes"
            )
        )
    if profile.mounts:
        found.append(loaded.problem(("mounts",), "a mount is a folder of this host, and the place does not have it"))
    if profile.workspace and profile.workspace.source != ".":
        found.append(
            loaded.problem(("workspace", "source"), "must be `.` for a place; name the folder with --workspace")
        )
    return found


def pack_request(
    asked: Asked,
    place: Place,
    folder: Path,
    request_id: str,
    note: Callable[[str], None],
    *,
    base: tuple[Repository, History] | None,
    instance_id: str | None = None,
    committed: bool = False,
) -> Request:
    """Write the folder of a request, which must not exist: beside its name first, then renamed.

    `base` is the repository at the commit that is to be run, and its history. With `committed`, nothing uncommitted is
    sent, and `asked.workspace` has the files of that commit.
    """
    loaded = check_profile(asked)
    check_sent(loaded, asked.sent_secrets)
    repository, history = base or (None, None)
    if not (committed or asked.accept_changes or asked.warm):
        # The place compares what it gets: without a workspace no history, and never the branches of this policy.
        require_accepted(compare(loaded, repository, read_policy()), str(asked.profile))
    root, profile = asked.workspace.resolve(), loaded.profile
    name = parse_instance_id(instance_id or asked.instance_id or _derive(repository, root)).instance_id
    made = folder.with_name(f".{folder.name}.new")
    made.mkdir(mode=0o700, parents=True)
    try:
        deleted = _pack_uncommitted(repository, loaded, made, note) if repository and not committed else ()
        profile_path, in_workspace = _pack_profile(asked, root, made)
        playbooks = _pack_playbooks(asked, profile, root, made, in_workspace)
        request = Request(
            request_id=request_id,
            instance_id=name,
            who=asked.who,
            place=place.name,
            created_at=now(),
            profile=profile_path,
            in_workspace=in_workspace,
            digest=digest_judged(
                loaded, name, playbooks, find_image_digest(profile), repository.branch if repository else "",
                repository.commit if repository else "",
            ),
            branch=repository.branch if repository else "",
            commit=repository.commit if repository else "",
            shallow=history.shallow if history else "",
            refs=history.find_refs(repository.commit) if repository and history else (),
            gates=asked.gates,
            cold=asked.cold,
            warm=asked.warm,
            node=asked.node,
            accept_changes=asked.accept_changes,
            # Nothing is run, so that none is needed.
            secrets=() if asked.warm else tuple(secret.name for secret in profile.secrets),
            sent_secrets=asked.sent_secrets,
            vcpus=profile.resources.vcpus,
            memory=profile.resources.memory,
            seconds=find_seconds(profile, len(asked.gates or profile.gates)),
            attempts=place.attempts,
            grace=place.grace,
            deleted=deleted,
            files=(*_list_files(made), *(history.files if history else ())),
        )  # fmt: skip
        if history:
            history.link(made)
        (made / DOCUMENT).write_text(json.dumps(request.to_json(), indent=1) + "\n", encoding="utf-8")
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return request


def find_image_digest(profile: Profile) -> str:
    """The digest of the recipe of the image, or of the image itself."""
    if profile.image.url:
        return profile.image.sha256
    path = find_shipped("images", f"{profile.image.recipe}.yaml")
    assert path is not None, "checked with the other references"
    return load_recipe(path).digest


def find_seconds(profile: Profile, gates: int) -> int:
    """The longest that a run of the profile can take."""
    workload = profile.workload.timeout if profile.workload else 0
    judged = profile.gate_timeout * gates * (2 if profile.is_verified_apart else 1)
    return min(_AROUND * (2 if profile.is_verified_apart else 1) + workload + judged, 90 * 86400)


def _derive(repository: Repository | None, root: Path) -> str:
    found = repository or find_named(root)
    return derive_instance_id(found.name, found.branch or found.commit[:12]).instance_id


def _pack_uncommitted(
    repository: Repository, loaded: LoadedProfile, made: Path, note: Callable[[str], None]
) -> tuple[str, ...]:
    """The tar of uncommitted files. The paths that are deleted."""
    workspace = loaded.profile.workspace
    assert workspace is not None
    require_clean(repository, workspace)
    with read_loose([("", repository)], workspace, note) as loose:
        if loose.changed or loose.included:
            loose.archive.seek(0)
            with (made / UNCOMMITTED).open("wb") as file:
                shutil.copyfileobj(loose.archive, file)
        return loose.deleted


def _pack_profile(asked: Asked, root: Path, made: Path) -> tuple[str, bool]:
    """Copy the profile and what it extends. Its path beneath `files/`, and whether it is in the workspace."""
    place = find_place(Path.cwd() / asked.profile, (root,))
    in_workspace = place.root == root and asked.profile.resolve().is_relative_to(root)
    base = root if in_workspace else asked.profile.resolve().parent
    name = str(asked.profile.resolve().relative_to(base))
    seen: list[str] = []
    read_profile(asked.profile, asked.workspace, seen=seen)
    for path in sorted({Path(source).resolve() for source in (str(asked.profile), *seen)}):
        # A shipped profile that it extends is at the place as well.
        if path.is_relative_to(base):
            _copy(base, str(path.relative_to(base)), made, "")
    return name, in_workspace


def _pack_playbooks(
    asked: Asked, profile: Profile, root: Path, made: Path, in_workspace: bool
) -> tuple[tuple[str, str], ...]:
    """Copy the playbooks of the workspace with the files that they use. Each gate with its digest."""
    prefix = "" if in_workspace else "workspace/"
    for gate in asked.gates:
        if wrong := check_name(gate):
            raise UsageError(
                f"the gate {gate!a:.100} cannot be sent: {wrong}",
                where="--gate",
                hint="name a playbook of the workspace",
            )
    playbooks = [(gate, read_playbook(find_playbook(gate, root), root)) for gate in asked.gates or profile.gates]
    prepare = [read_playbook(find_playbook(profile.prepare.playbook, root), root)] if profile.prepare else []
    for playbook in (*(one for _, one in playbooks), *prepare):
        if playbook.path.is_relative_to(root):
            beneath = playbook.path.parent.relative_to(root)
            for name, digest in playbook.files.items():
                if digest and not name.endswith("/"):
                    _copy(root, str(beneath / name), made, prefix)
    return tuple((gate, playbook.digest) for gate, playbook in playbooks)


def _copy(root: Path, name: str, made: Path, prefix: str) -> None:
    target = made / FILES / prefix / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_file(root, name), "rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _list_files(made: Path) -> tuple[SentFile, ...]:
    found = []
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found.append(
                SentFile(
                    str(path.relative_to(made)), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
                )
            )
    return tuple(found)
