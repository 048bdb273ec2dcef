"""Suspend and resume: a machine goes to the disk with nothing of its network or secrets, and comes back behind its firewall.

Each step may be interrupted, also by the host's end; the journal says what was begun, and either command takes it up again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.instance.instance import BOOT_LIMIT, NETWORK, Instance, SecretReader
from ktrdr_vm.instance.resources.base import Notify, Resource, Verb, quiet
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.resources.saved_state import Saved
from ktrdr_vm.instance.secrets import take_secrets
from ktrdr_vm.plan.domain_memory import drop_incoming

_GIVE_UP = "after `{}`, `ktrdr-vm apply` starts it from its disk, as after a power cut"
_ENDED = (None, "shutoff", "crashed", "shutdown")


def suspend(instance: Instance, *, notify: Notify = quiet) -> None:
    """Take secrets and mounts out of the guest, save it, end it, and take its network away. Use under the instance's lock.

    A guest that does not let go of a secret or a mount runs on, and an error says so. Fine when it is suspended already.
    """
    journal = instance.require_journal()
    if journal.state == "suspended":
        return
    saved = _open_saved(instance)
    if _find_state(instance) in _ENDED and not (journal.state != "awake" and saved.exists() and not saved.verify()):
        raise UsageError(
            "its machine does not run, so there is nothing to save", where=journal.instance_id, hint="`ktrdr-vm apply` starts it again"
        )
    journal.enter("suspending")
    if _find_state(instance) not in _ENDED:
        try:
            _let_go(instance, journal, notify)
        except KtrdrError as error:
            raise ProvisionError(
                f"the instance runs on: {error.message}",
                where=journal.instance_id,
                hint=f"`ktrdr-vm resume {journal.instance_id}` gives it back what was taken from it; {error.hint}",
            ) from None
        _timed(saved, "changed", notify, saved.create)
        journal.confirm(saved.key)
    for resource in reversed(_pick(instance.open_resources(), NETWORK)):
        _timed(resource, "removed", notify, resource.remove)
        journal.strike(resource.key)
    # Whoever suspends it means to come back.
    journal.kept = True
    journal.enter("suspended")


def resume(instance: Instance, *, read_secret: SecretReader, mount_roots: tuple[str, ...] = (), notify: Notify = quiet) -> None:
    """Bring a suspended instance back: firewall, guard and tap first, then the machine, its clock, its mounts and secrets.

    Use under the instance's lock. One that runs gets back what an interrupted `suspend` took, and one that stands still goes on.
    """
    journal, plan = instance.require_journal(), instance.plan
    if journal.state == "awake":
        if _find_state(instance) in _ENDED:
            raise UsageError(
                "its machine has ended, and it was not suspended: after a restart of the host, for one",
                where=journal.instance_id,
                hint="`ktrdr-vm apply` starts an interactive one from its disk; `ktrdr-vm gc` removes a sandbox",
            )
        if _find_state(instance) == "paused":
            # QEMU pauses it when a write finds no room, the guard when the host has little left.
            instance.require_closed()
            instance.libvirt.resume(instance.identity.domain)
        return
    saved = _open_saved(instance)
    asleep = _find_state(instance) in _ENDED
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
                f"the saved state cannot be used: {'; '.join(differences)}", where=saved.name, hint=_GIVE_UP.format(saved.by_hand())
            )
        require_capacity(instance.home.root, plan.profile.resources.memory)
    journal.enter("resuming")
    for resource in _pick(instance.open_resources(), NETWORK):
        instance.ensure(resource, journal, notify)
    [domain] = _pick(instance.open_resources(), ("domain",))
    if asleep:
        _timed(domain, "changed", notify, lambda: instance.libvirt.restore(saved.target.paths.saved, drop_incoming))
    if _find_state(instance) != "running":
        if plan.profile.mode == "interactive":
            instance.libvirt.define(domain.blueprint.documents["domain.xml"])
        # From its first instruction on the disk is newer than what was saved.
        _timed(saved, "removed", notify, saved.remove)
        journal.strike(saved.key)
        instance.libvirt.resume(instance.identity.domain)
    _set_clock(instance, BOOT_LIMIT[plan.facts.accelerator])
    instance.complete(plan, read_secret=read_secret, mount_roots=mount_roots, notify=notify)
    journal = instance.require_journal()
    journal.enter("awake")


def _let_go(instance: Instance, journal: Journal, notify: Notify) -> None:
    for key in take_secrets(instance, notify):
        journal.strike(key)
    for resource in reversed(instance.open_resources()):
        if isinstance(resource, Mount):
            _timed(resource, "removed", notify, resource.detach)
            journal.strike(resource.key)
    instance.close()


def _set_clock(instance: Instance, limit: float) -> None:
    """It stood still with the machine."""
    guest = instance.connect(limit=limit)
    told = guest.run(["date", "-u", "-s", f"@{time.time():.3f}"], become=True, timeout=60)
    if told.exit_code != 0:
        raise ProvisionError("the guest's clock could not be set", where=instance.identity.instance_id, hint="set it in the guest")


def _open_saved(instance: Instance) -> Saved:
    [overlay] = _pick(instance.open_resources(), ("overlay",))
    return Saved(overlay.target, overlay.blueprint)


def _pick(resources: Iterable[Resource], kinds: tuple[str, ...]) -> list[Resource]:
    return [resource for resource in resources if resource.kind in kinds]


def _find_state(instance: Instance) -> str | None:
    facts = instance.libvirt.find(instance.identity.domain)
    return facts.state if facts is not None else None


def _timed(resource: Resource, verb: Verb, notify: Notify, act: Callable[[], None]) -> None:
    began = time.monotonic()
    act()
    notify(resource.kind, resource.name, verb, time.monotonic() - began)


def shut_down(instance: Instance, limit: float = 90.0) -> None:
    """Ask the guest to power off, and end its machine when it does not within `limit` seconds. Its disk stays."""
    with contextlib.suppress(KtrdrError):
        instance.connect().run("systemctl poweroff || poweroff", become=True, timeout=20)
    instance.close()
    deadline = time.monotonic() + limit
    while instance.is_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    # The definition goes too: the next start is from the new plan.
    instance.libvirt.stop(instance.identity.domain)
