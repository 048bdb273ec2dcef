"""What an instance is made of. Each resource is one thing on the host with the same four verbs, all idempotent.

`exists` asks the host itself, never a file of ours, and an answer that could not be had is an error, not a no.
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
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import Secret

Verb = Literal["ok", "changed", "removed", "absent", "failed"]
Notify = Callable[[str, str, Verb, float], None]
"""`notify(resource kind, name, what happened, seconds)`."""


def quiet(_kind: str, _name: str, _verb: Verb, _seconds: float) -> None:
    """A listener for those who do not want to hear."""


@dataclass(frozen=True)
class Target:
    """Whose resource it is. Enough to look for it and to take it away, even when the journal is lost."""

    identity: Identity
    paths: InstancePaths
    libvirt: Libvirt

    @property
    def mark(self) -> str:
        """What our taps and tables carry, so that nothing of anybody else is taken for it."""
        return self.identity.mark(str(self.paths.home))

    def is_running(self) -> bool:
        """True while libvirt has a machine of it, also one that is paused."""
        facts = self.libvirt.find(self.identity.domain)
        return facts is not None and facts.state.is_alive

    def require_awake(self) -> None:
        """UsageError when it is suspended: there is a saved state to resume, and no machine."""
        if self.paths.saved.exists() and not self.is_running():
            name = self.identity.instance_id
            raise UsageError(f"{name} is suspended", where=name, hint=f"`ktrdr-vm resume {name}` wakes it")


@dataclass(frozen=True)
class Blueprint:
    """What it is to be. Needed to create and to verify."""

    plan: Plan
    allocation: Allocation
    connect: Callable[[], Guest]
    """The guest over SSH, connected when first asked for."""
    read_secret: Callable[[Secret], bytes]
    """The secret's value from its source on the host."""
    template: TemplateFacts | None = None
    """What the instance is forked from; None is a cold boot."""
    disk: str = ""
    """The snapshot's disk that the overlay begins as; empty is an empty one."""
    mount_roots: tuple[str, ...] = ()
    """Folders of the owner's policy that mounts may come from, besides the workspace."""
    await_isolation: Callable[[], None] = lambda: None
    """Returns when everything between the guest and the network is there, and raises what its creation raised."""

    @functools.cached_property
    def documents(self) -> dict[str, str]:
        """Every document by its file name, rendered when the first is needed."""
        return self.plan.render(self.allocation, self.template)


class Resource(ABC):
    """One thing on the host that an instance owns."""

    kind: ClassVar[str]
    lives_in: ClassVar[Literal["host", "guest", "guard"]] = "host"
    """What lives in the memory of the guest or of the guard goes with it, and is not looked for when an instance is
    removed."""
    needs_guest: ClassVar[bool] = False
    """It is made with the guest's help, once the guest answers."""
    survives_suspend: ClassVar[bool] = False
    """It stays while the instance is suspended."""
    isolates: ClassVar[bool] = False
    """It stands between the guest and the network."""
    is_independent: ClassVar[bool] = False
    """It is made beside the machine's disk and the paused machine, which need nothing of it before the guest runs."""
    restores_plan: ClassVar[bool] = False
    """A process of its own puts back what differs from its plan: it is stopped before another plan is carried out."""

    def __init__(self, target: Target, blueprint: Blueprint | None = None) -> None:
        self.target = target
        self._blueprint = blueprint

    @property
    def blueprint(self) -> Blueprint:
        assert self._blueprint is not None, f"{self.kind} was opened for removal only"
        return self._blueprint

    @property
    def name(self) -> str:
        """What the host calls it; shown in plans and reports."""
        return self.target.identity.instance_id

    @property
    def key(self) -> str:
        """How the journal calls it."""
        return self.kind

    @property
    def planned(self) -> bool:
        """True if the plan contains it. A resource of an approval or of an earlier plan is listed to be removed
        only."""
        return True

    @abstractmethod
    def exists(self) -> bool:
        """True if it, or any part of it, exists on the host."""

    @abstractmethod
    def create(self) -> None:
        """Make it, and whatever part of it is missing."""

    @abstractmethod
    def verify(self) -> list[str]:
        """How it differs from the plan; empty when it does not."""

    @abstractmethod
    def remove(self) -> None:
        """Take it away, whole. Fine when it is already gone."""

    def stop(self) -> None:
        """End what runs of it and keep what it owns, so that `create` makes it again. Most have nothing that runs."""
        return

    def by_hand(self) -> str:
        """What a person types when `remove` cannot."""
        return f"ktrdr-vm destroy {self.target.identity.instance_id}"
