"""libvirt as a list of domains, without a connection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState


class FakeLibvirt(Libvirt):
    """These domains, on a host with these security models. What needs the daemon fails the test."""

    def __init__(self, *domains: DomainFacts, models: Iterable[str] = ("dac",)) -> None:
        super().__init__()
        self.domains = list(domains)
        self.models = tuple(models)
        self.stopped: list[str] = []

    def connect(self) -> NoReturn:
        raise AssertionError("a unit test connects to no libvirtd")

    def _ask(self, doing: str, where: str, question: Any) -> NoReturn:
        raise AssertionError(f"a unit test asks no libvirtd: {doing} {where}")

    def find(self, name: str) -> DomainFacts | None:
        return next((domain for domain in self.domains if domain.name == name), None)

    def list_ours(self) -> list[DomainFacts]:
        return self.domains

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def read_capabilities(self) -> str:
        models = "".join(f"<secmodel><model>{model}</model><doi>0</doi></secmodel>" for model in self.models)
        return f"<capabilities><host>{models}</host></capabilities>"


def make_domain(
    instance_id: str, home: Path | str, mode: str = "sandbox", state: DomainState = DomainState.RUNNING
) -> DomainFacts:
    return DomainFacts(f"ktrdr-{instance_id}", instance_id, str(home), mode, state, persistent=True)
