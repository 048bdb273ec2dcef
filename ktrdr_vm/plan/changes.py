"""Changes of the profile of an interactive instance: applied live or with a restart; others are refused.

The journal contains the plan of the instance, which is compared with the new one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ktrdr_vm.errors import UsageError
from ktrdr_vm.plan.plan import Plan, canonical_json, plain

How = Literal["live", "restart", "never"]


@dataclass(frozen=True)
class Change:
    """One changed part of a profile, and how the change can be applied."""

    part: str
    before: str
    after: str
    how: How

    def __str__(self) -> str:
        return f"{self.part}: {self.before} → {self.after}"


def find_changes(before: Plan, after: Plan) -> tuple[Change, ...]:
    """The differences between the plan of an instance and a new one, in the order of the profile."""
    old, new = before.profile, after.profile
    parts: tuple[tuple[str, object, object, How], ...] = (
        ("mode", old.mode, new.mode, "never"),
        ("image", before.facts.image.digest, after.facts.image.digest, "never"),
        ("resources.disk", old.resources.disk, new.resources.disk, "never"),
        ("resources.vcpus", old.resources.vcpus, new.resources.vcpus, "restart"),
        ("resources.memory", old.resources.memory, new.resources.memory, "restart"),
        # Shared memory, which mounts require, is configured at the start of the VM.
        ("mounts", plain(old.mounts), plain(new.mounts), "restart"),
        # So is the reserve for hot-plug.
        ("hot-plug", _describe_reserve(before), _describe_reserve(after), "restart"),
        ("egress", _list_egress(before), _list_egress(after), "live"),
        ("secrets", plain(old.secrets), plain(new.secrets), "live"),
        ("environment", plain(old.environment), plain(new.environment), "live"),
        ("telemetry", _describe(before), _describe(after), "live"),
        ("ttl", old.ttl, new.ttl, "live"),
    )
    return tuple(Change(name, _show(was), _show(now), how) for name, was, now, how in parts if was != now)


def require_same_workspace(before: Plan, after: Plan) -> None:
    """UsageError when the instance was created for another clone: it contains the commits of that clone, and its name
    is reserved for it."""
    old, new = PurePosixPath(before.facts.workspace), PurePosixPath(after.facts.workspace)
    # A folder of one clone is the same clone.
    if (
        before.profile.workspace is None
        or after.profile.workspace is None
        or old.is_relative_to(new)
        or new.is_relative_to(old)
    ):
        return
    name = after.identity.instance_id
    raise UsageError(
        f"the instance {name} belongs to the workspace {old}",
        where=str(new),
        hint=(
            f"choose another name with --instance-id; or, in {old}, `ktrdr-vm pull {name}` and `ktrdr-vm destroy"
            f" {name}`"
        ),
    )


def require_possible(changes: tuple[Change, ...], instance_id: str, *, running: bool, restart: bool) -> None:
    """UsageError for changes that cannot be applied, or not without `--restart`."""
    never = [change for change in changes if change.how == "never"]
    if never:
        raise UsageError(
            f"these changes cannot be applied to an existing instance: {'; '.join(map(str, never))}",
            where=instance_id,
            hint=(
                f"undo them, or run `ktrdr-vm snapshot {instance_id} NAME`, destroy it and `apply --from"
                f" {instance_id}@NAME`"
            ),
        )
    waiting = [change for change in changes if change.how == "restart"]
    if waiting and running and not restart:
        raise UsageError(
            f"these changes require a restart of the VM: {'; '.join(map(str, waiting))}",
            where=instance_id,
            hint="`apply --restart` shuts it down and starts it again; its disk is kept",
        )


def render_difference(before: Plan, after: Plan) -> str:
    """The difference of the profiles as a patch; empty if they are equal."""
    was, now = (
        canonical_json(plain(one.profile) | {"rules": _list_egress(one)}).splitlines() for one in (before, after)
    )
    return "\n".join(difflib.unified_diff(was, now, "the instance", "the profile", lineterm="", n=1))


def _list_egress(plan: Plan) -> list[str]:
    return [
        *map(str, plan.rules),
        *(f"{one} at {one.requests.base_url_env}" for one in plan.profile.egress.allow if one.requests),
    ]


def _describe(plan: Plan) -> str:
    return f"OTLP to {plan.collector.url}" if plan.collector else "none"


def _describe_reserve(plan: Plan) -> str:
    reserve = plan.facts.lending
    size = f"up to {reserve.vcpus} vcpus and {reserve.memory} MiB" if reserve.vcpus else ""
    return " and ".join(filter(None, ("mounts" if reserve.mounts else "", size))) or "nothing"


def _show(value: object) -> str:
    if isinstance(value, list):
        return (
            f"{len(value)} entries"
            if any(isinstance(one, (dict, list)) for one in value)
            else ", ".join(map(str, value)) or "nothing"
        )
    return str(value)[:40]
