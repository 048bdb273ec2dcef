"""Suspend and resume: the VM is saved to disk without secrets and without a network, and restored behind its firewall.

Each step may be interrupted, also by the end of the host. The journal records what was begun, and either command
continues it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.fork import end_copy
from ktrdr_vm.host.libvirt_binding import DomainState
from ktrdr_vm.instance.instance import BOOT_LIMIT
from ktrdr_vm.instance.loaded import LoadedInstance, SecretReader
from ktrdr_vm.instance.resources.base import Notify, Resource, Verb, quiet
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.resources.saved_state import Saved
from ktrdr_vm.instance.resources.tap import move_in
from ktrdr_vm.instance.secrets import end_connection, remove_secrets
from ktrdr_vm.plan.domain_memory import drop_incoming

_DISCARD_HINT = "after `{}`, `ktrdr-vm apply` starts it from its disk, as after a power cut"


def suspend(loaded: LoadedInstance, *, notify: Notify = quiet) -> None:
    """Remove secrets and mounts from the guest, save it, end it, and remove its network. Call it under the instance's
    lock.

    ProvisionError when the guest does not release a secret or a mount: it then keeps running. No effect when it is
    suspended already.
    """
    journal = loaded.journal
    if journal.state == "suspended":
        return
    saved = Saved(loaded.target)
    if not loaded.target.is_running() and not (journal.state != "awake" and saved.exists() and not saved.verify()):
        raise UsageError(
            "its VM does not run, so there is nothing to save",
            where=journal.instance_id,
            hint="`ktrdr-vm apply` starts it again",
        )
    journal.enter("suspending")
    end_branching(loaded)
    if loaded.target.is_running():
        try:
            _release(loaded, notify)
        except KtrdrError as error:
            raise ProvisionError(
                f"the instance keeps running: {error.message}",
                where=journal.instance_id,
                hint=f"`ktrdr-vm resume {journal.instance_id}` restores what was removed; {error.hint}",
            ) from None
        _timed(saved, "changed", notify, saved.create)
        journal.confirm(saved.key)
    for resource in reversed(loaded.open_network()):
        _timed(resource, "removed", notify, resource.remove)
        journal.strike(resource.key)
    # Whoever suspends an instance intends to resume it.
    journal.kept = True
    journal.enter("suspended")


def resume(
    loaded: LoadedInstance, *, read_secret: SecretReader, mount_roots: tuple[str, ...] = (), notify: Notify = quiet
) -> None:
    """Resume a suspended instance: namespace, firewall, guard and tap first, then the VM, its clock, its mounts and its
    secrets.

    Call it under the instance's lock. For a running instance, what an interrupted `suspend` removed is restored; a
    paused one continues.
    """
    journal, plan = loaded.journal, loaded.plan
    if journal.state == "awake":
        if not loaded.target.is_running():
            raise UsageError(
                "its VM has ended, and it was not suspended, for example because the host was restarted",
                where=journal.instance_id,
                hint="`ktrdr-vm apply` starts an interactive one from its disk, and creates a sandbox again",
            )
        if _find_state(loaded) == "paused":
            # QEMU pauses it when a write fails for lack of space, the guard when the host has little space left.
            loaded.require_closed()
            loaded.libvirt.resume(loaded.identity.domain)
        return
    saved = Saved(loaded.target)
    suspended = not loaded.target.is_running()
    if suspended:
        if not saved.exists():
            raise ProvisionError(
                "its VM has ended and there is no saved state",
                where=journal.instance_id,
                hint="`ktrdr-vm apply` starts it from its disk, as after a power cut",
            )
        differences = saved.verify()
        if differences:
            raise ProvisionError(
                f"the saved state cannot be used: {'; '.join(differences)}",
                where=saved.name,
                hint=_DISCARD_HINT.format(saved.by_hand()),
            )
        require_capacity(loaded.home.root, plan.profile.resources.memory)
    journal.enter("resuming")
    end_branching(loaded)
    for resource in loaded.open_network():
        loaded.ensure(resource, notify)
    domain = loaded.resource("domain")
    if suspended:
        _timed(domain, "changed", notify, lambda: loaded.libvirt.restore(loaded.paths.saved, drop_incoming))
    move_in(loaded.target, loaded.allocation)
    if _find_state(loaded) != "running":
        if plan.profile.mode == "interactive":
            loaded.libvirt.define(domain.blueprint.documents["domain.xml"])
        # As soon as the VM executes an instruction, the disk is newer than the saved state.
        _timed(saved, "removed", notify, saved.remove)
        journal.strike(saved.key)
        loaded.libvirt.resume(loaded.identity.domain)
    set_clock(loaded, BOOT_LIMIT[plan.facts.accelerator])
    loaded.complete(read_secret=read_secret, mount_roots=mount_roots, notify=notify)
    journal.enter("awake")


def _release(loaded: LoadedInstance, notify: Notify) -> None:
    journal = loaded.journal
    for key in remove_secrets(loaded, notify):
        journal.strike(key)
    for resource in reversed(loaded.open_resources()):
        if isinstance(resource, Mount):
            _timed(resource, "removed", notify, resource.detach)
            journal.strike(resource.key)
    end_connection(loaded)


def end_branching(loaded: LoadedInstance) -> None:
    """Remove the copy that a killed `branch` left."""
    if loaded.paths.branching.exists():
        if loaded.target.is_running():
            end_copy(loaded.libvirt, loaded.identity.domain)
        shutil.rmtree(loaded.paths.branching)


def set_clock(loaded: LoadedInstance, limit: float) -> None:
    """Set the clock of the guest, which did not advance while the VM was paused."""
    guest = loaded.connect(limit=limit)
    done = guest.run(["date", "-u", "-s", f"@{time.time():.3f}"], become=True, timeout=60)
    if done.exit_code != 0:
        raise ProvisionError("the guest's clock could not be set", where=loaded.instance_id, hint="set it in the guest")


def _find_state(loaded: LoadedInstance) -> DomainState | None:
    facts = loaded.libvirt.find(loaded.identity.domain)
    return facts.state if facts is not None else None


def _timed(resource: Resource, verb: Verb, notify: Notify, act: Callable[[], None]) -> None:
    began = time.monotonic()
    act()
    notify(resource.kind, resource.name, verb, time.monotonic() - began)


def shut_down(loaded: LoadedInstance, limit: float = 90.0) -> None:
    """Power off the guest, and end its VM if it still runs after `limit` seconds. Its disk stays."""
    with contextlib.suppress(KtrdrError):
        loaded.connect().run("systemctl poweroff || poweroff", become=True, timeout=20)
    loaded.close()
    deadline = time.monotonic() + limit
    while loaded.target.is_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    # The definition is removed as well: the next start is from the new plan.
    loaded.libvirt.stop(loaded.identity.domain)
