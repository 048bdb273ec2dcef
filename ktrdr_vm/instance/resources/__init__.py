"""The resources of an instance, in the order of creation: protections are created first and removed last."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ktrdr_vm.host.mounts import find_mounts
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.instance.resources.brokered_secret import BrokeredSecret
from ktrdr_vm.instance.resources.domain import Domain
from ktrdr_vm.instance.resources.firewall import Firewall
from ktrdr_vm.instance.resources.guard import Guard
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.resources.namespace import Namespace
from ktrdr_vm.instance.resources.overlay import Overlay
from ktrdr_vm.instance.resources.saved_state import Saved
from ktrdr_vm.instance.resources.secret import Secret
from ktrdr_vm.instance.resources.seed import Seed
from ktrdr_vm.instance.resources.tap import Tap

# The number of a mount in the profile, or the id of an escalation.
_MARK = re.compile(r"e?[0-9]{1,4}")


def make_resources(target: Target, blueprint: Blueprint | None) -> tuple[Resource, ...]:
    """The resources in order. Without a blueprint (the journal is lost): everything of the target that the host may
    have."""
    if blueprint is not None:
        profile = blueprint.plan.profile
        mounts = [Mount(target, blueprint, str(number), entry) for number, entry in enumerate(profile.mounts)]
        secrets: list[Resource] = [
            BrokeredSecret(target, blueprint, entry) if entry.broker else Secret(target, blueprint, entry, entry.name)
            for entry in profile.secrets
        ]
    else:
        mounts = []
        secrets = []  # they are only in the memory of the domain and of the guard
    known = {mount.mark for mount in mounts}
    # Mounts that are not in the plan: of a loan, or of a plan that is lost.
    mounts += [Mount(target, blueprint, mark, None) for mark in _find_mounts(target) if mark not in known]
    return (
        Overlay(target, blueprint),
        Seed(target, blueprint),
        # Only while the instance is suspended; a running one does not lack it.
        *([Saved(target, blueprint)] if target.paths.saved.exists() else []),
        Namespace(target, blueprint),
        Firewall(target, blueprint),
        Guard(target, blueprint),
        Tap(target, blueprint),
        Domain(target, blueprint),
        *mounts,
        *secrets,
    )


def find_resource(resources: Iterable[Resource], kind: str) -> Resource:
    """The resource of that kind. LookupError when there is none, or more than one."""
    found = [resource for resource in resources if resource.kind == kind]
    if len(found) != 1:
        raise LookupError(f"{len(found)} resources of the kind {kind}")
    return found[0]


def find_secrets(resources: Iterable[Resource]) -> list[Resource]:
    """The secrets among them, including those that the guard uses for the guest."""
    return [resource for resource in resources if isinstance(resource, Secret | BrokeredSecret)]


def _find_mounts(target: Target) -> list[str]:
    places = [mount.target for mount in find_mounts(target.paths.mounts)]
    if target.paths.mounts.exists():
        places += [str(path) for path in target.paths.mounts.iterdir()]
    marks = {Path(place).name for place in places if Path(place).parent == target.paths.mounts}
    return sorted(mark for mark in marks if _MARK.fullmatch(mark))
