"""One line of an allowlist."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from ktrdr_vm.profile.requests import Requests


@dataclass(frozen=True, order=True)
class EgressRule:
    """One allowed destination: a name (exact, or `*.` and a suffix) or an address range, and TCP ports."""

    host: str = ""
    cidr: IPv4Network | None = None
    ports: tuple[int, ...] = (443,)
    reason: str = ""
    preset: str = ""
    """The preset from which the rule was expanded, or that the rule names before the expansion."""
    requests: Requests | None = None
    """If set, the guest may send these requests to the host by way of the guard, and may not connect to it."""

    @property
    def destination(self) -> str:
        return self.host or str(self.cidr or f"preset {self.preset}")

    def __str__(self) -> str:
        limit = f" {self.requests.describe()}" if self.requests else ""
        return f"{self.destination}:{','.join(map(str, self.ports))}{limit}"
