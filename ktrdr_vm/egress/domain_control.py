"""What the guard does to the guest's machine: it makes it stand still and go on."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktrdr_vm.host.libvirt import Libvirt


class DomainControl:
    """The domain of this name. Its methods raise KtrdrError."""

    def __init__(self, domain: str) -> None:
        self.domain = domain

    @cached_property
    def _libvirt(self) -> Libvirt:
        from ktrdr_vm.host.libvirt import Libvirt

        # The guard has other things to do than to wait for a libvirtd that is restarted.
        return Libvirt(patience=0)

    def find_state(self) -> str:
        """libvirt's word for it; empty when there is no such domain."""
        facts = self._libvirt.find(self.domain)
        return facts.state if facts is not None else ""

    def suspend(self) -> None:
        self._libvirt.suspend(self.domain)

    def resume(self) -> None:
        self._libvirt.resume(self.domain)
