"""The resources of an instance, in the order of making: what protects comes before what it protects, and goes after it."""

from __future__ import annotations

from ktrdr_vm.host.mounts import find_mounts
from ktrdr_vm.resources.base import Blueprint, Resource, Target
from ktrdr_vm.resources.brokered import BrokeredSecret
from ktrdr_vm.resources.domain import Domain
from ktrdr_vm.resources.firewall import Firewall
from ktrdr_vm.resources.guard import Guard
from ktrdr_vm.resources.mount import Mount
from ktrdr_vm.resources.overlay import Overlay
from ktrdr_vm.resources.saved import Saved
from ktrdr_vm.resources.secret import Secret
from ktrdr_vm.resources.seed import Seed
from ktrdr_vm.resources.tap import Tap


def make_resources(target: Target, blueprint: Blueprint | None) -> tuple[Resource, ...]:
    """The ordered tuple. Without a blueprint (the journal is lost) it holds whatever of the target may be on the host."""
    if blueprint is not None:
        profile = blueprint.plan.profile
        mounts = [Mount(target, blueprint, index) for index in range(len(profile.mounts))]
        secrets: list[Resource] = [
            BrokeredSecret(target, blueprint, entry) if entry.broker else Secret(target, blueprint, entry, entry.name)
            for entry in profile.secrets
        ]
    else:
        mounts = [Mount(target, None, index) for index in _find_mount_indexes(target)]
        secrets = []  # they live in the memory of the domain and of the guard only
    return (
        Overlay(target, blueprint),
        Seed(target, blueprint),
        # Only while the instance is suspended; a running one is never without it by mistake.
        *([Saved(target, blueprint)] if target.paths.saved.exists() else []),
        Firewall(target, blueprint),
        Guard(target, blueprint),
        Tap(target, blueprint),
        Domain(target, blueprint),
        *mounts,
        *secrets,
    )


def _find_mount_indexes(target: Target) -> list[int]:
    places = [mount.target for mount in find_mounts(target.paths.mounts)]
    if target.paths.mounts.exists():
        places += [str(path) for path in target.paths.mounts.iterdir()]
    return sorted({int(place.rsplit("/", 1)[1]) for place in places if place.rsplit("/", 1)[1].isdigit()})
