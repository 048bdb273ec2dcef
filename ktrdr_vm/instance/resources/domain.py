"""The VM itself. A disposable one is transient: libvirt forgets the domain when it ends, for whatever reason."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ktrdr_vm.errors import ForeignError, HostError, ProvisionError
from ktrdr_vm.guest.agent import begin_identity
from ktrdr_vm.host.confinement import PROFILES, has_profile, make_memory_rules, remove_profile, write_profile
from ktrdr_vm.host.fork import fill_memory, load_state
from ktrdr_vm.host.libvirt_binding import DomainFacts
from ktrdr_vm.host.page_cache import read_ahead
from ktrdr_vm.host.running import end_process, find_processes
from ktrdr_vm.instance.resources.base import Resource
from ktrdr_vm.instance.resources.tap import move_in, move_inside, set_up
from ktrdr_vm.plan.domain_xml import shares_memory


class Domain(Resource):
    kind = "domain"

    @property
    def name(self) -> str:
        return self.target.identity.domain

    def exists(self) -> bool:
        return self._find() is not None or bool(self._processes()) or has_profile(self.target.identity.uuid)

    def _find(self) -> DomainFacts | None:
        """The domain. ForeignError when another state directory created it, since the same instance_id may exist
        there."""
        facts = self.target.libvirt.find(self.name)
        if facts is not None and facts.home != str(self.target.paths.home):
            raise ForeignError(
                f"the domain {self.name} belongs to another state directory, {facts.home}",
                where=self.name,
                hint="choose another --instance-id, or set $KTRDR_VM_HOME; objects of others are never changed",
            )
        return facts

    def _processes(self) -> list[int]:
        return find_qemu(self.name, self.target.paths.directory)

    def create(self) -> None:
        plan = self.blueprint.plan
        facts = self._find()
        if facts is not None and facts.state.is_alive:
            return
        libvirt, xml, persistent = (
            self.target.libvirt,
            self.blueprint.documents["domain.xml"],
            plan.profile.mode == "interactive",
        )
        self.blueprint.await_disk()
        template = self.blueprint.template
        if template is None or not template.thaw:
            if plan.facts.lending.memory:
                # It starts with libvirt's own profile as well; this one avoids a denial in the host's log.
                with contextlib.suppress(HostError):
                    write_profile(libvirt, self.target.identity.uuid, ())
            self.blueprint.await_isolation()
            libvirt.start(self.name, xml, persistent=persistent)
            move_in(self.target, self.blueprint.allocation)
            return
        # A later start of the same VM, after a suspend, opens the same memory.
        write_profile(
            libvirt,
            self.target.identity.uuid,
            make_memory_rules(template.memory, template.state, readonly=template.readonly),
        )
        read_ahead(Path(template.memory), Path(template.pages))
        libvirt.start(self.name, xml, persistent=persistent, paused=True)
        self._fill_memory(Path(template.memory))
        load_state(libvirt, self.name, Path(template.state))
        # Until here the guest has executed no instruction.
        self.blueprint.await_isolation()
        libvirt.resume(self.name)
        identity = begin_identity(
            libvirt, self.name, self.target.identity, plan.facts.image.user, self.blueprint.allocation
        )
        move_inside(self.target)
        self.blueprint.prepare_connection()
        # Everything that gives it its own identity comes before its tap is up.
        identity.finish()
        set_up(self.target, self.blueprint.allocation)

    def _fill_memory(self, source: Path) -> None:
        """Copy the memory of the template into a fork that has memory of its own; other forks map it."""
        plan = self.blueprint.plan
        if shares_memory(plan.profile, plan.facts):
            pids = self._processes()
            if len(pids) != 1:
                raise ProvisionError(
                    f"{len(pids)} processes of QEMU run {self.name}", where=self.name, hint="see its console.log"
                )
            fill_memory(pids[0], source)

    def verify(self) -> list[str]:
        facts = self._find()
        if facts is None:
            return ["the domain is gone"]
        differences = []
        if facts.instance_id != self.target.identity.instance_id:
            differences.append(f"its metadata names {facts.instance_id}")
        if facts.state != "running":
            differences.append(f"it is {facts.state}")
        return differences

    def remove(self) -> None:
        facts = self._find()
        if facts is not None and facts.persistent:
            # Its disk is kept: libvirt ends QEMU gracefully, so that the disk is flushed first.
            self.target.libvirt.stop(self.name)
        # QEMU of a disposable VM is ended directly, which saves the second that it takes to shut down. libvirtd may
        # also have lost its domain.
        for pid in self._processes():
            end_process(pid)
        if self._find() is not None:
            self.target.libvirt.stop(self.name)
        if self._processes():
            raise ProvisionError(f"QEMU of {self.name} does not end", where=self.name, hint=self.by_hand())
        remove_profile(self.target.identity.uuid)

    def by_hand(self) -> str:
        profile = (
            f"; rm -f {PROFILES}/libvirt-{self.target.identity.uuid}*" if has_profile(self.target.identity.uuid) else ""
        )
        return f"virsh destroy {self.name}; virsh undefine {self.name}{profile}"


def find_qemu(domain: str, directory: Path | None = None) -> list[int]:
    """The QEMU processes of this domain: their arguments contain `guest=<domain>,` and name a file in `directory`."""
    marker = f"guest={domain},".encode()
    # libvirt writes its block devices as JSON.
    place = json.dumps(f"{directory}/")[1:-1].encode() if directory is not None else b""
    return find_processes(
        lambda words: (
            b"qemu" in words[0]
            and any(word.startswith(marker) for word in words)
            and any(place in word for word in words)
        )
    )
