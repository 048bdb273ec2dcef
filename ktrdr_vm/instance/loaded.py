"""An instance as its journal describes it, read once: plan, allocation, journal, and the operations on them while the
instance exists."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.revision import require_revision
from ktrdr_vm.errors import GuestError, ProvisionError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.guest.personalize import make_environment
from ktrdr_vm.host.journal import Journal, explained, locked
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.page_cache import remember_cached
from ktrdr_vm.host.paths import Home, InstancePaths
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.allocation import read_allocation
from ktrdr_vm.instance.backing import open_template
from ktrdr_vm.instance.diagnosis import ENDED
from ktrdr_vm.instance.lane import Lane
from ktrdr_vm.instance.resources import find_resource, find_secrets, make_resources
from ktrdr_vm.instance.resources.base import Blueprint, LaneName, Notify, Resource, Target, quiet
from ktrdr_vm.instance.resources.tap import close_unguarded, is_guarded
from ktrdr_vm.instance.waiting_guard import WaitingGuard
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.model import Secret

if TYPE_CHECKING:
    from ktrdr_vm.guest.ssh import SshGuest

# Seconds for the guard to restore what another program removed, or to restart what ended.
REPAIR_LIMIT = 10.0

SecretReader = Callable[[Secret], bytes]


@dataclass(frozen=True)
class ResourceStatus:
    """What `status` shows of one resource."""

    kind: str
    name: str
    exists: bool
    differences: tuple[str, ...]


class LoadedInstance:
    """The state of one instance. `plan`, `allocation` and `template` stay as they were read, and no property does I/O.

    `journal` is the only copy of the file on the disk: every change is written before the method returns. A caller
    that changes it has held the instance's lock since before it was loaded.
    """

    def __init__(
        self,
        home: Home,
        target: Target,
        journal: Journal,
        plan: Plan,
        allocation: Allocation,
        template: TemplateFacts | None,
    ) -> None:
        """`template` is the template that the instance was forked from; None for an instance without one."""
        self.home = home
        self.target = target
        self.journal = journal
        self.plan = plan
        self.allocation = allocation
        self.template = template
        self._guest: SshGuest | None = None
        # Two threads create resources.
        self._noting = threading.Lock()

    @property
    def identity(self) -> Identity:
        return self.target.identity

    @property
    def instance_id(self) -> str:
        return self.target.identity.instance_id

    @property
    def paths(self) -> InstancePaths:
        return self.target.paths

    @property
    def libvirt(self) -> Libvirt:
        return self.target.libvirt

    @property
    def guard(self) -> GuardClient:
        return GuardClient(self.paths.guard)

    @property
    def escalations(self) -> EscalationStore:
        return EscalationStore(self.paths.escalations, self.instance_id)

    def require_revision(self, expected: str) -> None:
        """UsageError unless the guard reports `expected` as the revision of the instance. Without an expectation the
        guard is not asked."""
        if expected:
            require_revision(expected, self.guard.find_revision(), self.instance_id)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return hold_lock(self.home, self.identity)

    # -- resources --------------------------------------------------------------------------------------------------

    def make_blueprint(self, read_secret: SecretReader | None = None, mount_roots: tuple[str, ...] = ()) -> Blueprint:
        """The specification of its resources. Without `read_secret` no secret can be created from it."""
        journal, disk = self.journal, ""
        # An instance that has run before, or that starts from a snapshot, uses the template's disk but boots from its
        # own: the memory of the template belongs to an older state.
        cold = "domain" in journal.resources or bool(journal.source)
        template = replace(self.template, thaw=not cold) if self.template else None
        if journal.source:
            origin, _, name = journal.source.partition("@")
            disk = str(self.home.instance(origin).snapshots / name / "disk.qcow2")
        return Blueprint(
            self.plan, self.allocation, self.connect, read_secret or _no_secrets, template, disk, mount_roots
        )

    def open_resources(
        self, read_secret: SecretReader | None = None, mount_roots: tuple[str, ...] = ()
    ) -> tuple[Resource, ...]:
        """The resources of the plan, in order, and others of the instance that the host has."""
        return make_resources(self.target, self.make_blueprint(read_secret, mount_roots))

    def resource(self, kind: str) -> Resource:
        """The resource of that kind."""
        return find_resource(self.open_resources(), kind)

    def open_network(self) -> list[Resource]:
        """The resources between the guest and the network, in the order of creation."""
        return [resource for resource in self.open_resources() if resource.isolates]

    def open_secrets(self, read_secret: SecretReader | None = None) -> list[Resource]:
        """The secrets of its profile."""
        return find_secrets(self.open_resources(read_secret))

    # -- creating ---------------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        read_secret: SecretReader,
        mount_roots: tuple[str, ...],
        notify: Notify = quiet,
        guard: WaitingGuard | None = None,
    ) -> None:
        """Create the missing resources up to the running domain. Mounts and secrets follow in `complete`. `guard` is a
        process that was started for it already.

        Two other threads create the disk, and namespace, firewall and guard, in order, in parallel with seed, tap and
        the paused VM. The guest executes no instruction before they exist.
        """
        with Lane() as isolation, Lane() as disk:
            blueprint = replace(
                self.make_blueprint(read_secret, mount_roots),
                prepare_connection=_load_ssh,
                await_disk=disk.wait,
                await_isolation=isolation.wait,
                waiting_guard=guard,
            )
            resources = [one for one in make_resources(self.target, blueprint) if not one.needs_guest]
            # With a process that waits there was no guard before.
            for earlier in (one for one in resources if guard is None and one.restores_plan and one.exists()):
                if earlier.verify():
                    # A guard of an earlier plan would restore the earlier rules. Without a guard nothing leaves until
                    # the new one serves.
                    earlier.stop()
            lanes: dict[LaneName, Lane] = {"disk": disk, "isolation": isolation}
            for name, lane in lanes.items():
                lane.begin([partial(self.ensure, one, notify) for one in resources if one.lane == name])
            for resource in resources:
                if resource.lane is None:
                    self.ensure(resource, notify)

    def complete(self, *, read_secret: SecretReader, mount_roots: tuple[str, ...], notify: Notify = quiet) -> None:
        """Create the resources that need the guest: mounts and secrets."""
        if self.template is not None:
            # The pages that the fork has read until here, for the first fork after a reboot.
            remember_cached(Path(self.template.memory), Path(self.template.pages))
        for resource in self.open_resources(read_secret, mount_roots):
            if not resource.needs_guest:
                continue
            if resource.planned:
                self.ensure(resource, notify)
            elif resource.key in self.journal.resources:
                # Of an earlier plan. A loan is in no journal, and stays.
                resource.remove()
                self.journal.strike(resource.key)
                notify(resource.kind, resource.name, "removed", 0.0)

    def ensure(self, resource: Resource, notify: Notify) -> None:
        """Create one resource, unless it exists as planned. The journal is written before and after."""
        began = time.monotonic()
        # The journal first: a new instance has nothing yet, and asking the host for it starts a program each time.
        if self.journal.resources.get(resource.key) == "present" and resource.exists() and not resource.verify():
            with self._noting:
                notify(resource.kind, resource.name, "ok", time.monotonic() - began)
            return
        with self._noting:
            self.journal.intend(resource.key)
        with explained(resource.name):
            resource.create()
        differences = resource.verify()
        if differences:
            raise ProvisionError(
                f"the {resource.kind} differs from the plan: {'; '.join(differences)}",
                where=resource.name,
                hint="another program may be changing it; check it on the host, then apply again",
            )
        with self._noting:
            self.journal.confirm(resource.key)
            notify(resource.kind, resource.name, "changed", time.monotonic() - began)

    # -- connecting -------------------------------------------------------------------------------------------------

    def connect(self, *, limit: float = 60.0) -> SshGuest:
        """The guest over SSH; waits up to `limit` seconds for it. Later calls return the same connection."""
        if self._guest is not None and self._guest.alive:
            return self._guest
        # Imported here: SSH and its cryptography take most of the time of a command that needs neither.
        from ktrdr_vm.guest import ssh

        self.target.refuse_suspended()
        self._guest = ssh.connect(
            (self.allocation.guest, 22),
            self.plan.facts.image.user,
            self.paths.login_key.read_text(),
            self.allocation.host_public_key,
            timeout=limit,
            instance_id=self.instance_id,
            namespace=self.identity.namespace,
            proceed=self._require_reachable,
        )
        return self._guest

    def _require_reachable(self) -> None:
        """Called before each attempt to connect. The link of a VM without a guard is down: no wait opens it."""
        if not self.target.is_running():
            raise GuestError(ENDED, where=self.instance_id, hint=f"its console says why: {self.paths.console}")
        if not is_guarded(self.target):
            raise GuestError(
                "no guard serves the instance, so the link of its VM is down",
                where=self.instance_id,
                hint=f"`ktrdr-vm apply` starts the guard again; its log: {self.paths.guard / 'guard.log'}",
            )

    def environment(self) -> dict[str, str]:
        """The environment variables of every process in the instance."""
        plan = self.plan
        served = plan.gateway_variables(self.allocation.gateway) if plan.served else {}
        return make_environment(
            self.identity, plan.profile.mode, {**plan.client_variables, **dict(plan.profile.environment), **served}
        )

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def hang_up(self) -> None:
        """Close the connection while a caller waits for an answer: the VM has ended. May be called from any thread."""
        guest = self._guest
        if guest is not None:
            guest.close()

    # -- checking ---------------------------------------------------------------------------------------------------

    def status(self) -> list[ResourceStatus]:
        """Each resource that must exist now: whether it exists, and how it differs from the plan.

        What cannot be checked because the guest does not answer differs from the plan.
        """
        suspended = self.journal.state == "suspended"
        close_unguarded(self.target)
        found: list[ResourceStatus] = []
        silent: ResourceStatus | None = None
        for resource in self.open_resources():
            if suspended and not resource.survives_suspend:
                continue
            if silent is not None and resource.location == "guest":
                # One wait for a guest that does not answer is enough.
                found.append(replace(silent, kind=resource.kind, name=resource.name))
                continue
            try:
                found.append(_read_status(resource))
            except GuestError as error:
                why = f"it cannot be checked: {error.message}"
                found.append(ResourceStatus(resource.kind, resource.name, True, (why,)))
                silent = found[-1]
        if suspended and not self.paths.saved.exists():
            found.append(ResourceStatus("saved", str(self.paths.saved), False, ()))
        return found

    def require_closed(self) -> None:
        """ProvisionError unless all resources between a running guest and the network are as planned, checked on the
        host."""
        network = self.open_network()
        end = time.monotonic() + REPAIR_LIMIT
        while True:
            close_unguarded(self.target)
            wrong = [row for row in map(_read_status, network) if not row.exists or row.differences]
            if not wrong or not self.target.is_running():
                # A VM that has ended sends nothing. The next call that needs it reports that it has ended.
                return
            if time.monotonic() > end:
                said = "; ".join(f"{row.kind}: {', '.join(row.differences) or 'it is gone'}" for row in wrong)
                raise ProvisionError(
                    f"the network of the instance differs from the plan: {said}",
                    where=self.instance_id,
                    hint=f"`ktrdr-vm status {self.instance_id}` shows it, `ktrdr-vm apply` creates it again",
                )
            # The guard repairs what other programs change, and restarts what ended.
            time.sleep(0.2)


def load_instance(home: Home, target: Target, journal: Journal, plan: Plan | None = None) -> LoadedInstance:
    """The instance of this journal. `plan` is the plan of the journal, if the caller has parsed it.

    ProvisionError when the plan or a key of the instance cannot be read.
    """
    try:
        parsed = plan or plan_from_json(journal.plan)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProvisionError(
            f"the plan in the journal cannot be read: {type(error).__name__}: {error}",
            where=str(journal.path),
            hint=f"use the ktrdr-vm that wrote it, or `ktrdr-vm destroy {journal.instance_id}`",
        ) from None
    try:
        allocation = read_allocation(target.paths, journal)
    except OSError as error:
        raise ProvisionError(
            f"a key of the instance cannot be read: {error.strerror}",
            where=str(error.filename),
            hint="apply again makes keys that are missing; else run as the owner of the state directory",
        ) from None
    template = open_template(home, journal.template) if journal.template else None
    return LoadedInstance(home, target, journal, parsed, allocation, template)


def hold_lock(home: Home, identity: Identity) -> contextlib.AbstractContextManager[None]:
    """The lock of an instance. BusyError when another run has it."""
    return locked(home.lock(identity.instance_id), f"the instance {identity.instance_id}")


def _no_secrets(secret: Secret) -> bytes:
    raise ProvisionError(
        f"the secret {secret.name} is not read here", where="secrets", hint="apply again to deliver it"
    )


def _read_status(resource: Resource) -> ResourceStatus:
    exists = resource.exists()
    return ResourceStatus(resource.kind, resource.name, exists, tuple(resource.verify()) if exists else ())


def _load_ssh() -> None:
    import ktrdr_vm.guest.ssh as _  # noqa: F401
