"""The parts of an instance. Each resource is one object on the host with the same four operations, all idempotent.

`exists` checks the host itself and no file of ktrdr-vm. A check that fails is an error and does not count as absence.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import InstancePaths
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.waiting_guard import WaitingGuard
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import Secret

Verb = Literal["ok", "changed", "removed", "absent", "failed"]
Notify = Callable[[str, str, Verb, float], None]
"""`notify(resource kind, name, what happened, seconds)`."""


def quiet(_kind: str, _name: str, _verb: Verb, _seconds: float) -> None:
    """A listener that does nothing."""


@dataclass(frozen=True)
class Target:
    """The instance that a resource belongs to: sufficient to find and to remove it, also when the journal is lost."""

    identity: Identity
    paths: InstancePaths
    libvirt: Libvirt

    @property
    def mark(self) -> str:
        """The mark of the instance's taps and tables. Objects without it belong to somebody else."""
        return self.identity.mark(str(self.paths.home))

    def is_running(self) -> bool:
        """True while libvirt has a running or paused domain of it."""
        facts = self.libvirt.find(self.identity.domain)
        return facts is not None and facts.state.is_alive

    def refuse_suspended(self) -> None:
        """UsageError when it is suspended: there is a saved state to resume, and no domain."""
        if self.paths.saved.exists() and not self.is_running():
            name = self.identity.instance_id
            raise UsageError(f"{name} is suspended", where=name, hint=f"`ktrdr-vm resume {name}` starts it")


LaneName = Literal["disk", "isolation"]


@dataclass(frozen=True)
class Blueprint:
    """The specification of the resources. Needed to create and to verify."""

    plan: Plan
    allocation: Allocation
    connect: Callable[[], Guest]
    """The guest over SSH, connected at the first call."""
    read_secret: Callable[[Secret], bytes]
    """The value of the secret, from its source on the host."""
    template: TemplateFacts | None = None
    """The template that the instance is forked from; None is a cold boot."""
    disk: str = ""
    """The disk of the snapshot that the overlay is copied from; with an empty string the overlay is empty."""
    mount_roots: tuple[str, ...] = ()
    """Folders of the owner's policy that mounts may come from, besides the workspace."""
    waiting_guard: WaitingGuard | None = None
    """A process of the guard that was started before; without one, the guard's creation starts it."""
    prepare_connection: Callable[[], None] = lambda: None
    """Loads the modules that `connect` needs. Called while the guest works and the host waits for it."""
    await_disk: Callable[[], None] = lambda: None
    """Returns when the disk exists, and raises what its creation raised."""
    await_isolation: Callable[[], None] = lambda: None
    """Returns when everything between the guest and the network exists, and raises what its creation raised."""

    @functools.cached_property
    def documents(self) -> dict[str, str]:
        """Every document by its file name, rendered at the first access."""
        return self.plan.render(self.allocation, self.template)


class Resource(ABC):
    """One object on the host that belongs to an instance."""

    kind: ClassVar[str]
    location: ClassVar[Literal["host", "guest", "guard"]] = "host"
    """Where it exists. Resources in the memory of the guest or of the guard end with that process, and are not checked
    when an instance is removed."""
    needs_guest: ClassVar[bool] = False
    """It is created with the help of the guest, once the guest answers."""
    survives_suspend: ClassVar[bool] = False
    """It stays while the instance is suspended."""
    isolates: ClassVar[bool] = False
    """It is between the guest and the network."""
    lane: ClassVar[LaneName | None] = None
    """The lane in which it is created, in parallel with the rest. The VM waits for its disk before QEMU starts, and for
    what isolates it before the guest runs."""
    restores_plan: ClassVar[bool] = False
    """A process of it restores what differs from its plan: it is stopped before another plan is applied."""

    def __init__(self, target: Target, blueprint: Blueprint | None = None) -> None:
        self.target = target
        self._blueprint = blueprint

    @property
    def blueprint(self) -> Blueprint:
        assert self._blueprint is not None, f"{self.kind} was opened for removal only"
        return self._blueprint

    @property
    def name(self) -> str:
        """Its name on the host; shown in plans and reports."""
        return self.target.identity.instance_id

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return self.kind

    @property
    def planned(self) -> bool:
        """True if the plan contains it. A resource of a loan or of an earlier plan is listed only to be removed."""
        return True

    @abstractmethod
    def exists(self) -> bool:
        """True if it, or any part of it, exists on the host."""

    @abstractmethod
    def create(self) -> None:
        """Create it, or the parts of it that are missing."""

    @abstractmethod
    def verify(self) -> list[str]:
        """The differences from the plan; empty if there are none."""

    @abstractmethod
    def remove(self) -> None:
        """Remove it completely. No error when it does not exist."""

    def stop(self) -> None:
        """End its processes and keep its files, so that `create` starts it again. Most resources have no process."""
        return

    def by_hand(self) -> str:
        """The command that a person types when `remove` fails."""
        return f"ktrdr-vm destroy {self.target.identity.instance_id}"
