"""Gathering the inputs of a plan: profile, policy, repository and facts of the host.

Requires neither root nor a running libvirt, and creates nothing but a memory of what clients of packages answered.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_vm.errors import DocumentError, HostError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.host.accelerator import EMULATOR, Accelerator, find_accelerator
from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.beneath import Place, UnsafePathError, find_place, open_file
from ktrdr_vm.host.cgroups import can_limit_cpu_time
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.paths import Home, find_shipped_profile
from ktrdr_vm.host.repository import Repository, find_named
from ktrdr_vm.identity import Identity, derive_instance_id, parse_instance_id
from ktrdr_vm.images.recipe import Recipe
from ktrdr_vm.inputs.presets import AskedClients, find_presets
from ktrdr_vm.inputs.references import (
    check_names,
    check_places,
    find_playbook,
    read_gates,
    read_playbook,
    read_recipe,
)
from ktrdr_vm.inputs.trusted import compare
from ktrdr_vm.plan.facts import STOCK_USER, Facts, HotplugReserve, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.ceiling import check_presets
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.policy.owner_policy import HINT as POLICY_HINT
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy
from ktrdr_vm.policy.reach import Reach
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.load import HINT, LoadedProfile, build_profile, load_profile
from ktrdr_vm.profile.model import ImageRef, Profile
from ktrdr_vm.profile.strict_yaml import MAX_BYTES

if TYPE_CHECKING:
    from ktrdr_vm.gates.model import Playbook
    from ktrdr_vm.guest.loose_files import LooseFiles

# A machine type that QEMU has since Debian 12, with its version, so that templates stay valid.
MACHINE = "pc-q35-7.2"
PLACES_HINT = "create the folder or file, or correct its name; paths are opened without following links"
REFERENCE_HINT = "correct the profile, or create the file that it names; `ktrdr-vm validate` shows all errors at once"


@dataclass(frozen=True)
class Base:
    """The commit whose profile and playbooks judge another one. `root` holds its files; `ref` and `changed` are of the
    judged commit.

    `changed` are all paths in which the two differ. `ref` is the full name of a ref, or the id of the commit.
    """

    commit: str
    name: str
    root: Path
    ref: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """A profile that may run on this host, its plan, and the other inputs."""

    loaded: LoadedProfile
    policy: OwnerPolicy
    plan: Plan
    accelerator: Accelerator
    repository: Repository | None
    recipe: Recipe | None
    playbooks: tuple[tuple[str, Playbook], ...]
    """Each gate with its playbook, parsed once: what is digested is what runs."""
    beyond: tuple[Reach, ...] = ()
    """What the profile allows in addition to the same file on a trusted branch."""
    loose: LooseFiles | None = None
    """For the fresh VM: the uncommitted files of the workspace, as the gates of the base had them."""
    base: Base | None = None
    """Set if a commit of the repository is judged, by `ktrdr-vm verify`."""

    @property
    def documents(self) -> Path:
        """The folder from which playbooks and their files are read: that of the base commit, else the workspace."""
        return self.base.root if self.base else Path(self.plan.facts.workspace)


def read_profile(path: Path, workspace: Path | None = None, *, seen: list[str] | None = None) -> LoadedProfile:
    """Load a profile and those that it extends, with all errors at once. Links in the workspace are refused.

    `seen`, if set, is filled with the path of each extended profile.
    """

    def read(reference: str, source: str) -> tuple[str, bytes]:
        found = _read_parent(reference, source)
        if seen is not None:
            seen.append(found[0])
        return found

    return load_profile(_read(path, workspace), str(path), read)


def gather(
    profile_path: Path, *, home: Home, workspace: Path, instance_id: str | None = None, gates: tuple[str, ...] = ()
) -> Gathered:
    """The inputs of `plan`, `render` and `apply`. `gates`, if set, replace those of the profile."""
    return gather_profile(
        read_profile(profile_path, workspace), home=home, workspace=workspace, instance_id=instance_id, gates=gates
    )


def gather_profile(
    loaded: LoadedProfile,
    *,
    home: Home,
    workspace: Path,
    instance_id: str | None = None,
    gates: tuple[str, ...] = (),
    base: Base | None = None,
) -> Gathered:
    """The same for a loaded profile. With `base`, playbooks are those of the base commit."""
    policy = read_policy()
    root = workspace.resolve()
    if not str(root).isprintable():
        # The path is part of documents of the plan, which are text.
        raise UsageError(
            "the path of the workspace is not printable UTF-8", where=ascii(str(root)), hint="rename the folder"
        )
    documents = base.root if base else root
    owner = find_owner()
    clients = AskedClients(loaded.profile, owner, Answers(home.clients))
    committed = base is not None
    playbooks, unreadable = read_gates(loaded, documents, committed=committed) if not gates else ((), [])
    recipe = read_recipe(loaded.profile.image)
    named, refused = [*check_names(loaded, recipe), *unreadable], check_policy(loaded, policy, str(root))
    unusable = [] if refused else check_places(loaded, root, policy.mount_roots)
    if problems := [*named, *refused, *unusable]:
        in_playbooks = all(one.source != loaded.source for one in problems)
        hint = _find_hint() if in_playbooks else PLACES_HINT if unusable and not named else REFERENCE_HINT
        raise DocumentError(problems, hint=POLICY_HINT if refused and not named else hint)
    if policy.longest_life and not loaded.profile.ttl:
        loaded.data["ttl"] = f"{policy.longest_life}s"
        loaded.profile = build_profile(loaded.data)
    profile = loaded.profile
    repository = find_named(root, profile.workspace.source) if profile.workspace else None
    identity = _identity(instance_id, root, repository)
    playbooks += tuple(
        (gate, read_playbook(find_playbook(gate, documents, trusted=True), documents, committed=committed))
        for gate in gates
    )
    image = _describe_image(profile.image, recipe, home)
    kernel = Path(image.directory, "vmlinuz")
    accelerator = find_accelerator(kernel if kernel.exists() else None)
    presets, client_files = find_presets(profile, clients, owner)
    if beyond := check_presets(profile, presets, policy.ceiling, policy.uses):
        raise DocumentError([loaded.problem(path, message) for path, message in beyond], hint=POLICY_HINT)
    facts = Facts(
        accelerator=accelerator.name,
        emulator=str(process.find_program(EMULATOR) or f"/usr/bin/{EMULATOR}"),
        machine=MACHINE,
        cpu_controller=can_limit_cpu_time(),
        home=str(home.root),
        image=image,
        owner_uid=owner[0],
        owner_gid=owner[1],
        workspace=str(root),
        base_ref=repository.branch if repository else "",
        base_commit=repository.commit if repository else "",
        playbooks=tuple((gate, playbook.digest) for gate, playbook in playbooks),
        presets=presets,
        client_files=client_files,
        owner_reserved=tuple(sorted(policy.reserved)),
        collector=_find_collector(profile, policy),
        lending=_find_reserve(profile, policy),
    )
    plan = Plan(profile, facts, identity, loaded.data)
    beyond_trusted = compare(loaded, repository, policy) if base is None else ()
    return Gathered(loaded, policy, plan, accelerator, repository, recipe, playbooks, beyond_trusted, base=base)


def _find_hint() -> str:
    # Loaded with the first playbook; a profile without gates starts without it.
    from ktrdr_vm.gates.playbook import PLAYBOOK_HINT

    return PLAYBOOK_HINT


def _identity(instance_id: str | None, root: Path, repository: Repository | None) -> Identity:
    if instance_id is not None:
        return parse_instance_id(instance_id)
    if repository is None:
        try:
            repository = find_named(root)
        except UsageError as error:
            raise UsageError(
                f"nothing names the instance: the profile has no workspace, and {error.message}",
                where=error.where,
                hint="name the instance with --instance-id",
            ) from None
    return derive_instance_id(repository.name, repository.branch or repository.commit[:12])


def _describe_image(ref: ImageRef, recipe: Recipe | None, home: Home) -> ImageFacts:
    if recipe is None:
        # The checksum is the digest, because it identifies the content.
        directory = str(home.images / ref.sha256)
        name = ref.url.rsplit("/", 1)[-1]
        return ImageFacts(name, ref.sha256, directory, boot="disk", disk_format="qcow2", user=STOCK_USER)
    return ImageFacts(
        name=recipe.name,
        digest=recipe.digest,
        directory=str(home.images / recipe.digest),
        kernel_args=" ".join(recipe.kernel_args) if not isinstance(recipe.kernel_args, str) else recipe.kernel_args,
        user=recipe.user,
    )


def _find_collector(profile: Profile, policy: OwnerPolicy) -> Collector | None:
    if not profile.telemetry.otlp:
        return None
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.proto") is None:
        raise HostError(
            "telemetry requires the packages of OpenTelemetry", where="telemetry", hint="install ktrdr-vm[telemetry]"
        )
    return policy.collector


def _find_reserve(profile: Profile, policy: OwnerPolicy) -> HotplugReserve:
    """The reserve for hot-plug; none if no escalation can request it."""
    kinds = policy.escalations.kinds if profile.asks else ()
    if "resources" not in kinds:
        return HotplugReserve(mounts="mount" in kinds)
    return HotplugReserve("mount" in kinds, policy.largest.vcpus, policy.largest.memory)


def _read(path: Path, workspace: Path | None = None) -> bytes:
    """Open a path that a user typed, which may be a link, except in the workspace, whose branch is not trusted."""
    root = (workspace or Path()).resolve()
    place = find_place(Path.cwd() / path, (root,))
    try:
        if place.root == root:
            with os.fdopen(open_file(place), "rb") as file:
                return file.read(MAX_BYTES + 1)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            hint="name a file that exists and is readable, or a shipped profile",
        ) from None


def _read_parent(reference: str, source: str) -> tuple[str, bytes]:
    """Read an extended profile: a file beneath the folder of the profile, or a shipped profile by name."""
    folder = Place(Path(source).resolve().parent)
    try:
        place = folder.join(reference)
        with os.fdopen(open_file(place), "rb") as file:
            return str(place.path), file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        pass
    except UnsafePathError as error:
        raise UsageError(
            f"{reference} is outside of the folder of the profile: {error.message}", where=source, hint=HINT
        ) from None
    shipped = find_shipped_profile(reference)
    if shipped is None:
        raise UsageError(
            f"{reference} is neither in the folder of the profile nor a shipped profile", where=source, hint=HINT
        )
    return str(shipped), _read(shipped)
