"""Branches: copies of a running instance with its memory and processes, each with its own identity, network and
secrets.

The original is paused while its disk and its memory are copied; with KVM, its memory is copied while it runs, except
for the last part. Its secrets are removed before the copy, and delivered again to the original and to each copy. The
reasons are in docs/adr.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.guest.agent import wait_agent
from ktrdr_vm.guest.personalize import personalize
from ktrdr_vm.host import process
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.fork import continue_domain, copy_state, touch_memory
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.backing import open_template
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance, SecretReader
from ktrdr_vm.instance.resources.base import Notify, quiet
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.instance.resources.overlay import COPY_LIMIT, copy_boot_files
from ktrdr_vm.instance.resources.secret import sweep_secrets
from ktrdr_vm.instance.secrets import end_connection, remove_secrets
from ktrdr_vm.instance.suspend import end_branching, set_clock
from ktrdr_vm.plan.domain_xml import shares_memory
from ktrdr_vm.plan.plan import Plan

# Seconds. A running guest answers at once, and on a busy host a little later.
AGENT_LIMIT = 30.0


@dataclass(frozen=True)
class HostInputs:
    """What branches need of the host: the reader of secrets, the folders that mounts may come from, and the instance
    limit.

    `reapply` delivers to the original again the secrets of approvals that were removed from it.
    """

    read_secret: SecretReader
    mount_roots: tuple[str, ...] = ()
    most_instances: int = 0
    reapply: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Branches:
    """The created instances, and the seconds for which the original was paused."""

    instances: tuple[str, ...]
    paused: float


def branch(
    loaded: LoadedInstance, identities: Iterable[Identity], inputs: HostInputs, *, notify: Notify = quiet
) -> Branches:
    """Create a copy of a running instance for each identity. Call it under the lock of the original; it locks each
    copy.

    UsageError, with nothing changed, for an instance that cannot be branched or a name that exists. If a copy cannot be
    created, all copies are removed. If the process is killed, the original is left as after an interrupted `suspend`,
    and `resume` repairs it.
    """
    wanted = tuple(identities)
    _require_possible(loaded, wanted)
    with contextlib.ExitStack() as held:
        copies = [Instance(loaded.home, identity, loaded.libvirt) for identity in wanted]
        for copy in copies:
            held.enter_context(copy.locked())
            if copy.find_journal() is not None:
                raise UsageError(
                    f"there is an instance {copy.identity.instance_id} already",
                    where=str(copy.paths.directory),
                    hint="choose another name, or destroy that one first",
                )
        with _folder(loaded) as folder:
            paused = _copy(loaded, folder, inputs, notify)
            held.callback(loaded.close)
            made: list[Instance] = []
            try:
                for copy in copies:
                    made.append(copy)
                    _create(loaded, copy, folder, inputs, notify)
            except BaseException:
                for one in made:
                    with contextlib.suppress(KtrdrError):
                        one.destroy(notify=notify)
                raise
    return Branches(tuple(one.instance_id for one in wanted), paused)


def _require_possible(loaded: LoadedInstance, wanted: tuple[Identity, ...]) -> None:
    name, plan = loaded.instance_id, loaded.plan
    loaded.target.refuse_suspended()
    if len({one.instance_id for one in wanted} | {name}) != len(wanted) + 1:
        raise UsageError("each branch needs a name of its own", where=name, hint="use --count for several")
    if not loaded.target.is_running() or loaded.journal.state != "awake":
        raise UsageError("it does not run", where=name, hint=f"`ktrdr-vm resume {name}` or `ktrdr-vm apply` starts it")
    reason = ""
    if shares_memory(plan.profile, plan.facts):
        reason = "its memory is shared with the program that serves its mounts, or prepared for one"
    elif plan.facts.lending.vcpus:
        reason = "it is prepared for hot-plugged vCPUs and memory"
    elif not loaded.journal.template or "mem-path" not in loaded.libvirt.describe(loaded.identity.domain):
        reason = "it was booted from its disk, and not forked from a template"
    if reason:
        raise UsageError(
            f"the instance cannot be branched: {reason}",
            where=name,
            hint="`ktrdr-vm snapshot` copies the disk of any instance",
        )
    memory, disk = plan.profile.resources.memory, loaded.paths.overlay.stat().st_size >> 20
    require_capacity(loaded.home.root, memory, guests=len(wanted), disk=memory + disk * (len(wanted) + 1))
    # A copy gets its identity from the agent, before it has a network. Without an agent: GuestError, and nothing is
    # changed.
    wait_agent(loaded.libvirt, loaded.identity.domain, limit=AGENT_LIMIT)


@contextlib.contextmanager
def _folder(loaded: LoadedInstance) -> Iterator[Path]:
    """A folder for memory and disk, removed when the block ends: the memory of a VM is not kept."""
    folder = loaded.paths.branching
    end_branching(loaded)
    make_private(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _copy(loaded: LoadedInstance, folder: Path, inputs: HostInputs, notify: Notify) -> float:
    """Copy memory and disk of one moment to the folder. The original then runs as before. Returns the seconds for which
    it was paused."""
    journal = loaded.journal
    for pid in find_qemu(loaded.identity.domain, loaded.paths.directory):
        touch_memory(pid, open_template(loaded.home, journal.template).memory)
    # As in `suspend`: if this process ends during the copy, `resume` restores what was removed.
    journal.enter("suspending")
    _require_no_delivery(loaded)
    try:
        for key in remove_secrets(loaded, notify):
            journal.strike(key)
        # The keys of the connection are secrets as well: a copy could continue the connection.
        end_connection(loaded)
        try:
            paused = _pause(loaded, folder)
        finally:
            set_clock(loaded, BOOT_LIMIT[loaded.plan.facts.accelerator])
    finally:
        loaded.complete(read_secret=inputs.read_secret, mount_roots=inputs.mount_roots, notify=notify)
        journal.enter("awake")
        inputs.reapply()
    return paused


def _require_no_delivery(loaded: LoadedInstance) -> None:
    """UsageError, with the original as before, while an approval delivers a secret. After this check an approval waits
    or is refused."""
    found = [
        one.id for one in loaded.escalations.list() if one.packet.kind == "secret" and one.answer and one.answer.waiting
    ]
    if found:
        loaded.journal.enter("awake")
        name = loaded.instance_id
        raise UsageError(
            f"an approval is delivering a secret: {', '.join(found)}",
            where=name,
            hint=f"try again; if its command was killed, `ktrdr-vm approve {name} {found[0]}` finishes it",
        )


def _pause(loaded: LoadedInstance, folder: Path) -> float:
    """Copy memory and disk. The original is paused at the latest when the copy of the disk begins. Returns the seconds
    of the pause."""
    libvirt, domain = loaded.libvirt, loaded.identity.domain
    try:
        # Under emulation, QEMU before 9.0 loses writes of a guest that runs while its memory is copied.
        paused = copy_state(libvirt, domain, folder / "state", live=loaded.plan.facts.accelerator == "kvm")
        began = time.monotonic()
        process.run(
            ["cp", "--reflink=auto", "--sparse=always", loaded.paths.overlay, folder / "disk.qcow2"], timeout=COPY_LIMIT
        )
    finally:
        continue_domain(libvirt, domain)
    return paused + time.monotonic() - began


def _create(loaded: LoadedInstance, copy: Instance, folder: Path, inputs: HostInputs, notify: Notify) -> None:
    plan = Plan(loaded.plan.profile, loaded.plan.facts, copy.identity, loaded.plan.source)
    template = open_template(loaded.home, loaded.journal.template)
    made = copy.begin(plan, template=template, most_instances=inputs.most_instances)
    made.template = replace(template, branched=str(folder / "state"))
    made.journal.intend("overlay")
    copy_boot_files(plan.facts.image, made.paths.directory)
    partial = made.paths.overlay.with_suffix(".partial")
    process.run(["cp", "--reflink=auto", "--sparse=always", folder / "disk.qcow2", partial], timeout=COPY_LIMIT)
    partial.chmod(0o600)
    partial.rename(made.paths.overlay)
    made.journal.confirm("overlay")
    made.create(read_secret=inputs.read_secret, mount_roots=inputs.mount_roots, notify=notify)
    try:
        guest = made.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
        # An approval may have delivered a secret to the original after its secrets were removed.
        sweep_secrets(guest)
        personalize(guest, plan, made.environment())
        made.complete(read_secret=inputs.read_secret, mount_roots=inputs.mount_roots, notify=notify)
        # Until here `gc` removes a disposable copy, as it removes the instance of a killed run.
        made.journal.keep()
    finally:
        made.close()
