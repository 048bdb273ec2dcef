"""An instance: its resources in order, made forward and removed backward. Owns the journal and the allocation."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ktrdr_vm.errors import HostError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.guest.personalize import make_environment
from ktrdr_vm.host.journal import Journal, explained, is_locked, locked, read_journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.allocation import create_keys, find_free_slot, read_allocation, require_room
from ktrdr_vm.instance.backing import open_template
from ktrdr_vm.instance.resources import make_resources
from ktrdr_vm.instance.resources.base import Blueprint, Notify, Resource, Target, quiet
from ktrdr_vm.instance.resources.base import Verb as Verb
from ktrdr_vm.instance.resources.tap import close_link
from ktrdr_vm.instance.teardown import find_residue, tear_down
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.model import Secret

if TYPE_CHECKING:
    from ktrdr_vm.guest.ssh import SshGuest

# How long a guest may take from power-on to an authenticated command. Emulation on a busy host is the slow end.
BOOT_LIMIT = {"kvm": 120.0, "tcg": 600.0}

# What stands between the guest and the network, in the order of making.
NETWORK = ("firewall", "guard", "tap")
# Seconds for the guard to put back what another program took away, or to start again what ended.
MEND_LIMIT = 10.0

SecretReader = Callable[[Secret], bytes]


@dataclass(frozen=True)
class ResourceStatus:
    """What `status` shows of one resource."""

    kind: str
    name: str
    exists: bool
    differences: tuple[str, ...]


class Instance:
    """One instance_id on this host. Use `locked()` around everything that changes it."""

    def __init__(self, home: Home, identity: Identity, libvirt: Libvirt) -> None:
        self.home = home
        self.identity = identity
        self.libvirt = libvirt
        self.paths = home.instance(identity.instance_id)
        self._guest: SshGuest | None = None

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.home.lock(self.identity.instance_id), f"the instance {self.identity.instance_id}")

    @property
    def journal(self) -> Journal | None:
        return read_journal(self.paths.journal)

    def find_mode(self) -> str:
        """sandbox or interactive, from the journal or, when that is lost, from the domain; empty when there is no instance."""
        with contextlib.suppress(ProvisionError):
            journal = self.journal
            if journal is not None:
                return journal.mode
        domain = self.libvirt.find(self.identity.domain)
        return domain.mode if domain is not None and domain.home == str(self.home.root) else ""

    def is_kept(self) -> bool:
        """True if the instance is interactive, or was created with the option to keep it."""
        with contextlib.suppress(ProvisionError):
            journal = self.journal
            if journal is not None and journal.kept:
                return True
        return self.find_mode() == "interactive"

    # -- making -----------------------------------------------------------------------------------------------------

    def create(
        self,
        plan: Plan,
        *,
        read_secret: SecretReader,
        mount_roots: tuple[str, ...],
        template: TemplateFacts | None = None,
        source: str = "",
        run_id: str = "",
        most_instances: int = 0,
        notify: Notify = quiet,
    ) -> None:
        """Make what is missing of everything up to the running domain, in order. Mounts and secrets follow in `complete`.

        A new instance is forked from `template` when there is one, or begins from the disk of a snapshot, `source`; an existing one
        stays what it was.
        """
        known = self.journal
        if known is not None:
            self.require_awake()
            if known.state != "awake" and not self.is_running():
                # The host ended while it fell asleep or woke, and no state of it is left: it boots from its disk.
                known.enter("awake")
        with explained(str(self.paths.directory)):
            journal = self._open_journal(plan, run_id, template, source, most_instances)
        blueprint = self._blueprint(plan, journal, read_secret, mount_roots)
        resources = self._host_side(make_resources(self._target(), blueprint))
        for guard in (resource for resource in resources if resource.kind == "guard" and resource.exists()):
            if guard.verify():
                # One of an earlier plan would put the earlier rules back. Without any, nothing leaves until the new one serves.
                guard.stop()
        for resource in resources:
            self.ensure(resource, journal, notify)

    def complete(self, plan: Plan, *, read_secret: SecretReader, mount_roots: tuple[str, ...], notify: Notify = quiet) -> None:
        """Make what needs the guest: mounts and secrets."""
        journal = self.require_journal()
        blueprint = self._blueprint(plan, journal, read_secret, mount_roots)
        resources = make_resources(self._target(), blueprint)
        for resource in resources[len(self._host_side(resources)) :]:
            if resource.planned:
                self.ensure(resource, journal, notify)
            elif resource.key in journal.resources:
                # Of an earlier plan. What is lent stands in no journal, and stays.
                resource.remove()
                journal.strike(resource.key)
                notify(resource.kind, resource.name, "removed", 0.0)

    @staticmethod
    def _host_side(resources: tuple[Resource, ...]) -> tuple[Resource, ...]:
        return tuple(resource for resource in resources if resource.kind not in ("mount", "secret"))

    def open_resources(self, *, read_secret: SecretReader | None = None, mount_roots: tuple[str, ...] = ()) -> tuple[Resource, ...]:
        """The resources of the plan that the instance was made from, in order."""
        journal = self.require_journal()
        blueprint = self._blueprint(plan_from_json(journal.plan), journal, read_secret or _no_secrets, mount_roots)
        return make_resources(self._target(), blueprint)

    def ensure(self, resource: Resource, journal: Journal, notify: Notify) -> None:
        """Make one resource, unless it is there and as planned; the journal knows before and after."""
        began = time.monotonic()
        if resource.exists() and journal.resources.get(resource.key) == "present" and not resource.verify():
            notify(resource.kind, resource.name, "ok", _since(began))
            return
        journal.intend(resource.key)
        with explained(resource.name):
            resource.create()
        differences = resource.verify()
        if differences:
            raise ProvisionError(
                f"the {resource.kind} is not what the plan says: {'; '.join(differences)}",
                where=resource.name,
                hint="another program may be changing it; look at it on the host, then apply again",
            )
        journal.confirm(resource.key)
        notify(resource.kind, resource.name, "changed", _since(began))

    def _open_journal(self, plan: Plan, run_id: str, template: TemplateFacts | None, source: str, most: int) -> Journal:
        existing = self.journal
        if existing is not None:
            existing.plan_digest, existing.run_id, existing.plan = plan.digest, run_id, plan.to_json()
            existing.live_for(plan.profile.ttl)
            existing.save()
            if not (self.paths.host_key.exists() and self.paths.login_key.exists()):
                # It died between its journal and its keys, so nothing carries them yet.
                create_keys(self.paths)
            return existing
        self.home.create()
        with locked(self.home.locks / "slots.lock", "the allocation of slots", wait=True):
            # The journal is written under the lock, so that the next one who looks finds the slot taken.
            if most:
                require_room(self.home, self.identity.instance_id, most)
            slot = find_free_slot(self.home)
            directory = self.paths.directory
            directory.mkdir(mode=0o711, exist_ok=True)
            directory.chmod(0o711)
            journal = Journal(
                path=self.paths.journal,
                instance_id=self.identity.instance_id,
                mode=plan.profile.mode,
                plan_digest=plan.digest,
                created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                run_id=run_id,
                slot=slot,
                genid=str(uuid.uuid4()),
                source=source,
                template=template.key if template else "",
                plan=plan.to_json(),
            )
            journal.live_for(plan.profile.ttl)
            journal.save()
        create_keys(self.paths)
        return journal

    # -- reaching ---------------------------------------------------------------------------------------------------

    def connect(self, *, limit: float = 60.0) -> SshGuest:
        """The guest over SSH; waits up to `limit` seconds for it. The connection is kept for the next caller."""
        if self._guest is not None and self._guest.alive:
            return self._guest
        # Imported with the first connection: SSH and its cryptography are most of the time of a command that needs neither.
        from ktrdr_vm.guest import ssh

        journal = self.require_journal()
        self.require_awake()
        allocation = read_allocation(self.paths, journal)
        plan = plan_from_json(journal.plan)
        self._guest = ssh.connect(
            allocation.guest,
            22,
            plan.facts.image.user,
            self.paths.login_key.read_text(),
            allocation.host_public_key,
            timeout=limit,
            instance_id=self.identity.instance_id,
            proceed=self._require_running,
        )
        return self._guest

    def environment(self) -> dict[str, str]:
        """What every process of the instance finds in its environment."""
        journal = self.require_journal()
        plan = plan_from_json(journal.plan)
        served = plan.gateway_variables(read_allocation(self.paths, journal).gateway) if plan.served else {}
        return make_environment(self.identity, plan.profile.mode, {**dict(plan.profile.environment), **served})

    @property
    def plan(self) -> Plan:
        """The plan that the instance was made from."""
        return plan_from_json(self.require_journal().plan)

    def _require_running(self) -> None:
        if not self.is_running():
            raise ProvisionError(
                "the domain ended while it was booting",
                where=self.identity.instance_id,
                hint=f"its console says why: {self.paths.console}",
            )

    def keep(self) -> None:
        """The run ends and the instance stays, until somebody destroys it."""
        journal = self.require_journal()
        journal.kept = True
        journal.save()
        self.close()

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def hang_up(self) -> None:
        """End the connection under whoever waits for an answer: the machine is gone. May be called from any thread."""
        guest = self._guest
        if guest is not None:
            guest.close()

    # -- looking ----------------------------------------------------------------------------------------------------

    def status(self) -> list[ResourceStatus]:
        """Each resource: is it there, and how it differs from the plan."""
        asleep = self.require_journal().state == "suspended"
        self.close_unguarded()
        found = []
        for resource in self.open_resources():
            if asleep and resource.kind not in ("overlay", "seed", "saved"):
                continue
            found.append(_look(resource))
        if asleep and not self.paths.saved.exists():
            found.append(ResourceStatus("saved", str(self.paths.saved), False, ()))
        return found

    def require_closed(self) -> None:
        """ProvisionError unless everything that stands between the guest and the network is as planned: it is never assumed."""
        end = time.monotonic() + MEND_LIMIT
        while True:
            wrong = [row for row in self._look_at(NETWORK) if not row.exists or row.differences]
            if not wrong:
                return
            if time.monotonic() > end:
                said = "; ".join(f"{row.kind}: {', '.join(row.differences) or 'it is gone'}" for row in wrong)
                raise ProvisionError(
                    f"the network of the instance is not what the plan says: {said}",
                    where=self.identity.instance_id,
                    hint=f"`ktrdr-vm status {self.identity.instance_id}` shows it, `ktrdr-vm apply` makes it again",
                )
            # The guard mends what others break, and starts again what ended.
            time.sleep(0.2)

    def close_unguarded(self) -> bool:
        """Set the link down when no guard serves it; True if it was up. Nothing is asked of a guard that somebody else could be."""
        return not is_locked(self.paths.guard / "guard.lock") and close_link(self._target())

    def _look_at(self, kinds: tuple[str, ...]) -> list[ResourceStatus]:
        self.close_unguarded()
        return [_look(resource) for resource in self.open_resources() if resource.kind in kinds]

    # -- removing ---------------------------------------------------------------------------------------------------

    def destroy(self, *, notify: Notify = quiet) -> None:
        """Remove everything, backward, then prove it. Every error is collected; a ResidueError names what is left.

        Interrupted once, it is begun again and finished before the interruption goes on.
        """
        try:
            self._destroy(notify)
        except KeyboardInterrupt:
            self._destroy(notify)
            raise

    def _destroy(self, notify: Notify) -> None:
        journal = self._read_journal_leniently()
        blueprint = None
        if journal is not None:
            with contextlib.suppress(KtrdrError, KeyError, TypeError, OSError, ValueError):
                blueprint = self._blueprint(plan_from_json(journal.plan), journal, _no_secrets, ())
        self.close()
        tear_down(self._target(), make_resources(self._target(), blueprint), journal, notify)

    def find_residue(self) -> list[str]:
        """What of this instance is on the host, asked of the host. The proof is an empty list."""
        return find_residue(make_resources(self._target(), None))

    # -- parts ------------------------------------------------------------------------------------------------------

    def _target(self) -> Target:
        return Target(self.identity, self.paths, self.libvirt)

    def _blueprint(self, plan: Plan, journal: Journal, read_secret: SecretReader, mount_roots: tuple[str, ...]) -> Blueprint:
        allocation = read_allocation(self.paths, journal)
        template = None
        if journal.template:
            # What has lived once stands on the template's disk, and begins from its own: the memory belongs to an older one.
            lived = "domain" in journal.resources or bool(journal.source)
            template = open_template(self.home, journal.template, thaw=not lived)
        documents = plan.render(allocation, template)
        disk = ""
        if journal.source:
            origin, _, name = journal.source.partition("@")
            disk = str(self.home.instance(origin).snapshots / name / "disk.qcow2")
        return Blueprint(plan, allocation, documents, self.connect, read_secret, template, disk, mount_roots)

    def require_journal(self) -> Journal:
        journal = self.journal
        if journal is None:
            raise UsageError(
                f"there is no instance {self.identity.instance_id}",
                where=str(self.home.instances),
                hint="`ktrdr-vm list` shows the instances of this host",
            )
        return journal

    def require_awake(self) -> None:
        """UsageError when there is no such instance, or when it is suspended: there is a state to wake it from."""
        if self.require_journal().state != "awake" and self.paths.saved.exists() and not self.is_running():
            raise UsageError(
                f"{self.identity.instance_id} is suspended",
                where=self.identity.instance_id,
                hint=f"`ktrdr-vm resume {self.identity.instance_id}` wakes it",
            )

    def is_running(self) -> bool:
        """True if libvirt has a running domain for it. A paused domain counts as running."""
        facts = self.libvirt.find(self.identity.domain)
        return facts is not None and facts.state not in ("shutoff", "crashed", "shutdown")

    def _read_journal_leniently(self) -> Journal | None:
        """For removal a damaged journal is as good as none: the host itself is asked."""
        try:
            return self.journal
        except ProvisionError:
            return None


def _no_secrets(secret: Secret) -> bytes:
    raise ProvisionError(f"the secret {secret.name} is not read here", where="secrets", hint="apply again to deliver it")


def _look(resource: Resource) -> ResourceStatus:
    exists = resource.exists()
    return ResourceStatus(resource.kind, resource.name, exists, tuple(resource.verify()) if exists else ())


def _since(began: float) -> float:
    return time.monotonic() - began


def require_root() -> None:
    """Taps, nftables and the system's libvirt need root today."""
    if os.geteuid() != 0:
        raise HostError("this command needs root", where="ktrdr-vm", hint="run it with sudo; `plan`, `render` and `validate` need no root")
