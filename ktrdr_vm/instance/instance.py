"""One instance_id on this host: the creation of its journal and the removal of its resources. The operations in between
are in `loaded.py`."""

from __future__ import annotations

import contextlib
import os
import uuid
from datetime import UTC, datetime

from ktrdr_vm.errors import HostError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.job import find_job
from ktrdr_vm.host.journal import Journal, explained, locked, read_journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.libvirt_binding import DomainFacts
from ktrdr_vm.host.links import list_links
from ktrdr_vm.host.paths import Home, InstancePaths
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.allocation import create_keys, find_free_slot, publish_keys, require_instance_limit
from ktrdr_vm.instance.inventory import is_kept
from ktrdr_vm.instance.loaded import LoadedInstance, SecretReader, hold_lock, load_instance
from ktrdr_vm.instance.resources import make_resources
from ktrdr_vm.instance.resources.base import Notify, Target, quiet
from ktrdr_vm.instance.resources.base import Verb as Verb
from ktrdr_vm.instance.resources.tap import close_unguarded
from ktrdr_vm.instance.teardown import find_residue, tear_down
from ktrdr_vm.plan.facts import Facts, TemplateFacts
from ktrdr_vm.plan.plan import Plan

# Seconds from power-on to an authenticated command. The limit for emulation allows for a busy host.
BOOT_LIMIT = {"kvm": 120.0, "tcg": 600.0}
# A stock image starts everything that its publisher enabled, which took nine minutes in emulation on a busy host.
_STOCK_FACTOR = 2


def find_boot_limit(facts: Facts) -> float:
    """Seconds that a cold boot of the image may take, until SSH answers."""
    return BOOT_LIMIT[facts.accelerator] * (_STOCK_FACTOR if facts.image.boot == "disk" else 1)


class Instance:
    """One instance_id on this host, whether or not the instance exists. Hold `locked()` around every change."""

    def __init__(self, home: Home, identity: Identity, libvirt: Libvirt) -> None:
        self.home = home
        self.target = Target(identity, home.instance(identity.instance_id), libvirt)

    @property
    def identity(self) -> Identity:
        return self.target.identity

    @property
    def paths(self) -> InstancePaths:
        return self.target.paths

    @property
    def libvirt(self) -> Libvirt:
        return self.target.libvirt

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return hold_lock(self.home, self.identity)

    # -- reading ----------------------------------------------------------------------------------------------------

    def find_journal(self) -> Journal | None:
        """The journal, read from the disk; None when there is no instance."""
        return read_journal(self.paths.journal)

    def require_journal(self) -> Journal:
        """The journal from the disk. UsageError when there is no instance."""
        journal = self.find_journal()
        if journal is None:
            raise UsageError(
                f"there is no instance {self.identity.instance_id}",
                where=str(self.home.instances),
                hint="`ktrdr-vm list` shows the instances of this host",
            )
        return journal

    def load(self, journal: Journal | None = None) -> LoadedInstance:
        """Read its journal, unless the caller passes it, and parse its plan. UsageError when there is no instance."""
        return load_instance(self.home, self.target, journal or self.require_journal())

    def refuse_suspended(self) -> None:
        """UsageError when there is no such instance, or when it is suspended."""
        self.require_journal()
        self.target.refuse_suspended()

    def find_mode(self) -> str:
        """sandbox or interactive, from the journal or, if that is lost, from the domain; empty when there is no
        instance."""
        journal = self._read_journal_leniently()
        if journal is not None:
            return journal.mode
        domain = self._find_domain()
        return domain.mode if domain is not None else ""

    def is_kept(self) -> bool:
        """True if the instance is interactive, or was created with the option to keep it; from its journal or, if that
        is lost, from its domain."""
        journal = self._read_journal_leniently()
        return is_kept(journal, self._find_domain() if journal is None else None)

    def _find_domain(self) -> DomainFacts | None:
        """Its domain, unless another state directory created it."""
        domain = self.libvirt.find(self.identity.domain)
        return domain if domain is not None and domain.home == str(self.home.root) else None

    # -- creating ---------------------------------------------------------------------------------------------------

    def create(
        self,
        plan: Plan,
        *,
        read_secret: SecretReader,
        mount_roots: tuple[str, ...],
        template: TemplateFacts | None = None,
        most_instances: int = 0,
        notify: Notify = quiet,
    ) -> LoadedInstance:
        """Create an instance up to its running domain: `begin` and `LoadedInstance.create` in one call."""
        loaded = self.begin(plan, template=template, most_instances=most_instances)
        loaded.create(read_secret=read_secret, mount_roots=mount_roots, notify=notify)
        return loaded

    def begin(
        self,
        plan: Plan,
        *,
        journal: Journal | None = None,
        template: TemplateFacts | None = None,
        source: str = "",
        run_id: str = "",
        most_instances: int = 0,
    ) -> LoadedInstance:
        """Write the journal, with a slot, and the keys, before any other part of the instance is created.

        A new instance is forked from `template` if there is one, or starts from the disk of a snapshot, `source`. An
        existing instance keeps both and gets the new plan. `journal` is its journal if the caller has read it.
        """
        journal = journal or self.find_journal()
        if journal is not None:
            self.target.refuse_suspended()
            if journal.state != "awake" and not self.target.is_running():
                # The host ended while the instance was suspending or resuming, and there is no saved state: it boots
                # from its disk.
                journal.enter("awake")
        else:
            self._require_nothing_left()
        with explained(str(self.paths.directory)):
            journal = self._open_journal(plan, journal, run_id, template, source, most_instances)
        return load_instance(self.home, self.target, journal, plan)

    def _require_nothing_left(self) -> None:
        """ProvisionError when objects of an instance of this name exist on the host and its state directory is lost."""
        namespace = self.identity.namespace
        left = [f"network namespace {namespace}"] if list_links(namespace).get("lo") == self.target.mark else []
        left += [f"domain {self.identity.domain}"] if self._find_domain() is not None else []
        if left:
            name = self.identity.instance_id
            raise ProvisionError(
                f"the state of the instance {name} was lost, and parts of it are still on the host: {', '.join(left)}",
                where=str(self.paths.directory),
                hint=f"`ktrdr-vm destroy {name}` removes them, as does `ktrdr-vm gc`",
            )

    def _open_journal(
        self, plan: Plan, existing: Journal | None, run_id: str, template: TemplateFacts | None, source: str, most: int
    ) -> Journal:
        if existing is not None:
            existing.plan_digest, existing.run_id, existing.plan = plan.digest, run_id, plan.to_json()
            existing.live_for(plan.profile.ttl)
            existing.save()
            if not (self.paths.host_key.exists() and self.paths.login_key.exists()):
                # The process died between the journal and the keys, so nothing has the keys yet.
                create_keys(self.paths)
            publish_keys(self.paths)
            return existing
        self.home.create()
        with locked(self.home.locks / "slots.lock", "the allocation of slots", wait=True):
            # The journal is written under the lock, so that the next caller finds the slot taken.
            if most:
                require_instance_limit(self.home, self.identity.instance_id, most)
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
                job=find_job(),
                plan=plan.to_json(),
            )
            journal.live_for(plan.profile.ttl)
            journal.save()
        create_keys(self.paths)
        return journal

    # -- removing ---------------------------------------------------------------------------------------------------

    def destroy(self, *, notify: Notify = quiet) -> None:
        """Remove all resources in reverse order, then check that none is left. All errors are collected; ResidueError
        names what is left.

        The first KeyboardInterrupt starts the removal again; when that has finished, the interrupt is raised.
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
                blueprint = self.load(journal).make_blueprint()
        tear_down(self.target, make_resources(self.target, blueprint), journal, notify)

    def find_residue(self) -> list[str]:
        """The objects of this instance on the host, as the host reports them; empty after a complete removal."""
        return find_residue(make_resources(self.target, None))

    def close_unguarded(self) -> bool:
        """Set the link down when no guard serves it; True if it was up."""
        return close_unguarded(self.target)

    def _read_journal_leniently(self) -> Journal | None:
        """The journal; None also when it is damaged, since removal checks the host itself."""
        try:
            return self.find_journal()
        except ProvisionError:
            return None


def require_root() -> None:
    """HostError unless this is root, of the host or of a world: taps, nftables and libvirt need it."""
    if os.geteuid() != 0:
        raise HostError(
            "this needs root or a world",
            where="ktrdr-vm",
            hint="call `enter_world()` of this package first, or run the program with sudo",
        )
