"""Suspend and resume: a machine goes to the disk with nothing of its network or secrets, and comes back behind its
firewall.

Each step may be interrupted, also by the host's end; the journal says what was begun, and either command takes it up
again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.libvirt import DomainState
from ktrdr_vm.instance.instance import BOOT_LIMIT
from ktrdr_vm.instance.loaded import LoadedInstance, SecretReader
from ktrdr_vm.instance.resources.base import Notify, Resource, Verb, quiet
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.resources.saved_state import Saved
from ktrdr_vm.instance.resources.tap import move_in
from ktrdr_vm.instance.secrets import take_secrets
from ktrdr_vm.plan.domain_memory import drop_incoming

_GIVE_UP = "after `{}`, `ktrdr-vm apply` starts it from its disk, as after a power cut"


def suspend(loaded: LoadedInstance, *, notify: Notify = quiet) -> None:
    """Take secrets and mounts out of the guest, save it, end it, and take its network away. Use under the instance's
    lock.

    A guest that does not let go of a secret or a mount runs on, and an error says so. Fine when it is suspended
    already.
    """
    journal = loaded.journal
    if journal.state == "suspended":
        return
    saved = Saved(loaded.target)
    if not loaded.target.is_running() and not (journal.state != "awake" and saved.exists() and not saved.verify()):
        raise UsageError(
            "its machine does not run, so there is nothing to save",
            where=journal.instance_id,
            hint="`ktrdr-vm apply` starts it again",
        )
    journal.enter("suspending")
    if loaded.target.is_running():
        try:
            _let_go(loaded, notify)
        except KtrdrError as error:
            raise ProvisionError(
                f"the instance runs on: {error.message}",
                where=journal.instance_id,
                hint=f"`ktrdr-vm resume {journal.instance_id}` gives it back what was taken from it; {error.hint}",
            ) from None
        _timed(saved, "changed", notify, saved.create)
        journal.confirm(saved.key)
    for resource in reversed(loaded.open_network()):
        _timed(resource, "removed", notify, resource.remove)
        journal.strike(resource.key)
    # Whoever suspends it means to come back.
    journal.kept = True
    journal.enter("suspended")


def resume(
    loaded: LoadedInstance, *, read_secret: SecretReader, mount_roots: tuple[str, ...] = (), notify: Notify = quiet
) -> None:
    """Bring a suspended instance back: namespace, firewall, guard and tap first, then the machine, its clock, its
    mounts and secrets.

    Use under the instance's lock. One that runs gets back what an interrupted `suspend` took, and one that stands still
    goes on.
    """
    journal, plan = loaded.journal, loaded.plan
    if journal.state == "awake":
        if not loaded.target.is_running():
            raise UsageError(
                "its machine has ended, and it was not suspended: after a restart of the host, for one",
                where=journal.instance_id,
                hint="`ktrdr-vm apply` starts an interactive one from its disk; `ktrdr-vm gc` removes a sandbox",
            )
        if _find_state(loaded) == "paused":
            # QEMU pauses it when a write finds no room, the guard when the host has little left.
            loaded.require_closed()
            loaded.libvirt.resume(loaded.identity.domain)
        return
    saved = Saved(loaded.target)
    asleep = not loaded.target.is_running()
    if asleep:
        if not saved.exists():
            raise ProvisionError(
                "its machine has ended and no saved state is there",
                where=journal.instance_id,
                hint="`ktrdr-vm apply` starts it from its disk, as after a power cut",
            )
        differences = saved.verify()
        if differences:
            raise ProvisionError(
                f"the saved state cannot be used: {'; '.join(differences)}",
                where=saved.name,
                hint=_GIVE_UP.format(saved.by_hand()),
            )
        require_capacity(loaded.home.root, plan.profile.resources.memory)
    journal.enter("resuming")
    for resource in loaded.open_network():
        loaded.ensure(resource, notify)
    domain = loaded.resource("domain")
    if asleep:
        _timed(domain, "changed", notify, lambda: loaded.libvirt.restore(loaded.paths.saved, drop_incoming))
    move_in(loaded.target, loaded.allocation)
    if _find_state(loaded) != "running":
        if plan.profile.mode == "interactive":
            loaded.libvirt.define(domain.blueprint.documents["domain.xml"])
        # From its first instruction on the disk is newer than what was saved.
        _timed(saved, "removed", notify, saved.remove)
        journal.strike(saved.key)
        loaded.libvirt.resume(loaded.identity.domain)
    _set_clock(loaded, BOOT_LIMIT[plan.facts.accelerator])
    loaded.complete(read_secret=read_secret, mount_roots=mount_roots, notify=notify)
    journal.enter("awake")


def _let_go(loaded: LoadedInstance, notify: Notify) -> None:
    journal = loaded.journal
    for key in take_secrets(loaded, notify):
        journal.strike(key)
    for resource in reversed(loaded.open_resources()):
        if isinstance(resource, Mount):
            _timed(resource, "removed", notify, resource.detach)
            journal.strike(resource.key)
    loaded.close()


def _set_clock(loaded: LoadedInstance, limit: float) -> None:
    """It stood still with the machine."""
    guest = loaded.connect(limit=limit)
    told = guest.run(["date", "-u", "-s", f"@{time.time():.3f}"], become=True, timeout=60)
    if told.exit_code != 0:
        raise ProvisionError("the guest's clock could not be set", where=loaded.instance_id, hint="set it in the guest")


def _find_state(loaded: LoadedInstance) -> DomainState | None:
    facts = loaded.libvirt.find(loaded.identity.domain)
    return facts.state if facts is not None else None


def _timed(resource: Resource, verb: Verb, notify: Notify, act: Callable[[], None]) -> None:
    began = time.monotonic()
    act()
    notify(resource.kind, resource.name, verb, time.monotonic() - began)


def shut_down(loaded: LoadedInstance, limit: float = 90.0) -> None:
    """Ask the guest to power off, and end its machine when it does not within `limit` seconds. Its disk stays."""
    with contextlib.suppress(KtrdrError):
        loaded.connect().run("systemctl poweroff || poweroff", become=True, timeout=20)
    loaded.close()
    deadline = time.monotonic() + limit
    while loaded.target.is_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    # The definition goes too: the next start is from the new plan.
    loaded.libvirt.stop(loaded.identity.domain)
