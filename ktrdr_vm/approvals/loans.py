"""Loans: folders of the host, vCPUs and memory that approvals hot-plug into a running VM, and their hot-unplug.

The VM is prepared for it at its start, within the limits of the owner's policy. Each loan has an expiry, at which the
guard starts this module as a program. A folder is removed without the cooperation of the guest. A guest may refuse to
release vCPUs and memory until the end of its VM, but the limit of CPU time on the host is restored immediately.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.mount import CUT_LIMIT, Mount
from ktrdr_vm.plan.domain_memory import HOTPLUG_MEMORY, HOTPLUG_STEP, find_hotpluggable
from ktrdr_vm.plan.domain_xml import make_quota
from ktrdr_vm.policy.owner_policy import OwnerPolicy, refuse_path
from ktrdr_vm.profile.model import Mount as MountEntry

# Seconds for a guest to accept or release vCPUs and memory. An emulated one is slow.
ACCEPT_LIMIT, RELEASE_LIMIT = 60.0, 20.0
# The kinds of escalations that hot-plug.
LOANS = ("mount", "resources")
_MEMORY = f"/machine/peripheral/{HOTPLUG_MEMORY}"

# Linux does not load the driver and online hot-plugged memory by itself. Movable memory can be unplugged.
_READY = "modprobe virtio_mem; echo online_movable > /sys/devices/system/memory/auto_online_blocks"
_ONLINE = """turns=0
until [ "$(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)" -ge "$COUNT" ]; do
  turns=$((turns + 1)); [ "$turns" -lt 300 ] || exit 1
  sleep 0.1
done
for one in /sys/devices/system/cpu/cpu[0-9]*/online; do
  read -r state < "$one"; [ "$state" = 1 ] || echo 1 > "$one"
done
"""


def check_loan(
    loaded: LoadedInstance, kind: str, request: dict[str, Any], policy: OwnerPolicy, standing: Iterable[dict[str, Any]]
) -> None:
    """UsageError for what cannot be hot-plugged into this VM. `standing` are the requests of the same kind that
    are in effect."""
    if kind == "mount":
        _check_folder(loaded, request, policy, standing)
    elif list(standing):
        raise UsageError(
            "vCPUs or memory are hot-plugged already", where=loaded.instance_id, hint="revoke that escalation first"
        )
    else:
        _check_size(loaded, request)


def _check_folder(
    loaded: LoadedInstance, request: dict[str, Any], policy: OwnerPolicy, standing: Iterable[dict[str, Any]]
) -> None:
    plan, where = loaded.plan, loaded.instance_id
    if not plan.facts.lending.mounts:
        raise _not_ready(where, "its memory is not shared, which a mount requires")
    if not request["readonly"]:
        raise UsageError(
            "a folder can be mounted read-only only",
            where=where,
            hint="approve it with --readonly; results are returned as artifacts",
        )
    refused = refuse_path(request["source"], plan.facts.workspace, (plan.facts.workspace, *policy.mount_roots))
    if refused:
        raise UsageError(
            refused, where=where, hint="see mounts.roots in the owner's policy; an approval cannot exceed it"
        )
    taken = [mount.target for mount in plan.profile.mounts] + [one["target"] for one in standing]
    taken += [plan.profile.workspace.target] if plan.profile.workspace else []
    for other in taken:
        if _overlap(request["target"], other):
            raise UsageError(
                f"{request['target']} overlaps with {other}",
                where=where,
                hint="deny it, and name a free target in the reason",
            )


def _check_size(loaded: LoadedInstance, request: dict[str, Any]) -> None:
    size, ready, where = loaded.plan.profile.resources, loaded.plan.facts.lending, loaded.instance_id
    vcpus, memory = request.get("vcpus", size.vcpus), request.get("memory", size.memory)
    if not ready.vcpus:
        raise _not_ready(where, "it has no free slot for memory or vCPUs")
    most = max(ready.vcpus, size.vcpus), size.memory + find_hotpluggable(size, ready)
    if vcpus > most[0] or size.memory + _steps(memory - size.memory) > most[1]:
        raise UsageError(
            f"{vcpus} vCPUs and {memory} MiB are more than this VM can have",
            where=where,
            hint=f"it can have {most[0]} and {most[1]}: resources.max of the owner's policy at its start",
        )
    if vcpus < size.vcpus or memory < size.memory or (vcpus, memory) == (size.vcpus, size.memory):
        raise UsageError(
            f"the VM has {size.vcpus} vCPUs and {size.memory} MiB already",
            where=where,
            hint="a request names the total of vCPUs and memory",
        )
    require_capacity(loaded.home.root, memory - size.memory)


def add_loan(
    loaded: LoadedInstance,
    loan: str,
    kind: str,
    request: dict[str, Any],
    policy: OwnerPolicy,
    *,
    seconds: int,
    reason: str,
) -> None:
    """Hot-plug it. `loan` is the id of the escalation. If the guest does not accept it, it is unplugged, and an error
    is raised."""
    # The expiry first: a loan has one also if this command is killed in between.
    loaded.guard.expire_loan(loan, seconds, module=__name__, message=f"{_describe(request)}: {reason}")
    try:
        if kind == "mount":
            _open_mount(loaded, loan, MountEntry(**request), policy.mount_roots).create()
        else:
            size = loaded.plan.profile.resources
            _set_size(loaded, request.get("vcpus", size.vcpus), request.get("memory", size.memory))
    except BaseException:
        remove_loan(loaded, loan, kind)
        raise


def remove_loan(loaded: LoadedInstance, loan: str, kind: str) -> None:
    """End a loan. ProvisionError if the guest does not release vCPUs or memory."""
    if kind == "mount":
        mount = _open_mount(loaded, loan, None, ())
        if mount.exists():
            mount.cut()
    else:
        size = loaded.plan.profile.resources
        _set_size(loaded, size.vcpus, size.memory)
    loaded.guard.cancel_expiry(loan)


def end_soon(loaded: LoadedInstance, loan: str) -> None:
    """Let the guard end a loan that expired during a suspend: its vCPUs and memory were saved with the VM."""
    size, reserve = loaded.plan.profile.resources, loaded.plan.facts.lending
    grown = reserve.vcpus > size.vcpus and loaded.libvirt.count_vcpus(loaded.identity.domain) > size.vcpus
    if not grown and not (find_hotpluggable(size, reserve) and _read_hotplugged(loaded)):
        return
    loaded.guard.expire_loan(loan, 0, module=__name__, message="it expired during a suspend")


def _set_size(loaded: LoadedInstance, vcpus: int, memory: int) -> None:
    """Set the vCPUs and the memory of the VM to these sizes, with the help of the guest."""
    libvirt, domain, plan = loaded.libvirt, loaded.identity.domain, loaded.plan
    reserve, size = plan.facts.lending, plan.profile.resources
    if reserve.vcpus > size.vcpus:
        has = libvirt.count_vcpus(domain)
        if vcpus > has:
            _require_possible_vcpus(loaded, vcpus)
        if plan.facts.cpu_controller:
            libvirt.limit_cpu_time(domain, make_quota(vcpus))
        if has != vcpus:
            _plug(loaded, vcpus)
        if vcpus > has:
            done = loaded.connect().run(_ONLINE, environment={"COUNT": str(vcpus)}, become=True, timeout=ACCEPT_LIMIT)
            if done.exit_code != 0:
                raise ProvisionError(
                    "the guest does not use the hot-plugged vCPUs",
                    where=domain,
                    hint="its kernel must support CPU hot-plug",
                )
    if find_hotpluggable(size, reserve):
        _resize(loaded, _steps(memory - size.memory))


def _require_possible_vcpus(loaded: LoadedInstance, vcpus: int) -> None:
    """ProvisionError if the kernel of the guest supports fewer vCPUs. Checked before a hot-plug, because vCPUs that the
    kernel does not accept cannot be unplugged either."""
    said = (
        loaded.connect()
        .run(["cat", "/sys/devices/system/cpu/possible"], timeout=ACCEPT_LIMIT)
        .stdout.decode("ascii", "replace")
    )
    last = said.strip().rpartition("-")[2]
    possible = int(last) + 1 if last.isdecimal() and len(last) < 6 else 1
    if possible < vcpus:
        raise ProvisionError(
            f"the kernel of the guest supports {possible} vCPUs, and not {vcpus}",
            where=loaded.identity.domain,
            hint="the number is fixed at its boot; approve memory only, or change the profile and apply again",
        )


def _plug(loaded: LoadedInstance, vcpus: int) -> None:
    libvirt, domain = loaded.libvirt, loaded.identity.domain
    end = time.monotonic() + RELEASE_LIMIT
    try:
        libvirt.set_vcpus(domain, vcpus)
    except KtrdrError:
        # libvirt waits some seconds for the guest to release it, and an emulated one may take longer.
        while libvirt.count_vcpus(domain) != vcpus:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _read_hotplugged(loaded: LoadedInstance) -> int:
    """The hot-plugged memory of the guest in MiB."""
    return int(loaded.libvirt.monitor(loaded.identity.domain, "qom-get", {"path": _MEMORY, "property": "size"})) >> 20


def _resize(loaded: LoadedInstance, extra: int) -> None:
    """Set the hot-plugged memory to `extra` MiB, in whole blocks."""
    libvirt, domain, has = loaded.libvirt, loaded.identity.domain, _read_hotplugged(loaded)
    if has == extra:
        return
    if extra > has:
        loaded.connect().run(_READY, become=True, timeout=ACCEPT_LIMIT)
    libvirt.monitor(domain, "qom-set", {"path": _MEMORY, "property": "requested-size", "value": extra << 20})
    end = time.monotonic() + (ACCEPT_LIMIT if extra > has else RELEASE_LIMIT)
    while (now := _read_hotplugged(loaded)) != extra:
        if time.monotonic() > end:
            raise ProvisionError(
                f"the guest has {now} MiB of hot-plugged memory and does not {'accept' if extra > has else 'release'}"
                " the rest",
                where=domain,
                hint="end processes that use memory in the guest; the rest is released when the VM ends",
            )
        time.sleep(0.1)


def _open_mount(loaded: LoadedInstance, loan: str, entry: MountEntry | None, roots: tuple[str, ...]) -> Mount:
    blueprint = loaded.make_blueprint(mount_roots=roots)
    if entry is None:
        # For the removal the guest is asked, but its answer is not waited for.
        blueprint = replace(blueprint, connect=lambda: loaded.connect(limit=CUT_LIMIT))
    return Mount(loaded.target, blueprint, loan, entry)


def _describe(request: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in request.items())


def _steps(memory: int) -> int:
    return -(-max(0, memory) // HOTPLUG_STEP) * HOTPLUG_STEP


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _not_ready(where: str, why: str) -> UsageError:
    return UsageError(
        f"this VM was not prepared for it: {why}",
        where=where,
        hint=(
            "escalations.kinds of the owner's policy must contain the kind when the VM starts: `apply --restart`, or"
            " apply again"
        ),
    )


def main() -> None:
    """`GUARD LOAN`: end a loan at its expiry. The guard reads the exit code."""
    directory = Path(sys.argv[1]).parent
    try:
        loaded = Instance(Home(directory.parents[1]), parse_instance_id(directory.name), Libvirt(patience=0)).load()
        with contextlib.closing(loaded):
            remove_loan(loaded, sys.argv[2], loaded.escalations.find(sys.argv[2]).packet.kind)
    except KtrdrError as error:
        raise SystemExit(f"{sys.argv[2]}: {error.message}") from None
