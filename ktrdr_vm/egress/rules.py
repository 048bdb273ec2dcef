"""Decisions on names and addresses, shared by the resolver and by the writer that does not trust it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from ktrdr_vm.plan.egress_policy import EgressPolicy
from ktrdr_vm.profile.policy import RESERVED

Endpoint = tuple[IPv4Address, int]


@dataclass(frozen=True)
class Rules:
    """The compiled allowlist of one instance, and the owner's exceptions inside the reserved ranges."""

    policy: EgressPolicy
    exceptions: frozenset[Endpoint] = frozenset()

    def ports(self, name: str) -> tuple[int, ...]:
        """Every port on which the name may be reached, by any listener; empty when the name is not allowed."""
        policy, ports = self.policy, set(self.other_ports(name))
        if _listed(name, policy.http_names, policy.http_suffixes):
            ports.add(80)
        if _listed(name, policy.tls_names, policy.tls_suffixes):
            ports.add(443)
        return tuple(sorted(ports))

    def other_ports(self, name: str) -> tuple[int, ...]:
        """The ports that the resolver opens by address: all but 80 and 443, which the proxy judges by name."""
        ports: set[int] = set()
        for entry, allowed in self.policy.other_names:
            if name == entry:
                ports.update(allowed)
        for suffix, allowed in self.policy.other_suffixes:
            if name.endswith(suffix) and name != suffix:
                ports.update(allowed)
        return tuple(sorted(ports))

    def judge_address(self, name: str, address: IPv4Address) -> str:
        """Why an answer may not be used, or nothing. A reserved address needs the owner's word for every port of the name."""
        if not any(address in network for network in RESERVED):
            return ""
        missing = [port for port in self.ports(name) if (address, port) not in self.exceptions]
        if missing:
            return f"{address} is in a reserved range"
        return ""


def _listed(name: str, names: tuple[str, ...], suffixes: tuple[str, ...]) -> bool:
    return name in names or any(name.endswith(suffix) and name != suffix for suffix in suffixes)


def rules_from_json(policy: dict[str, Any], exceptions: list[list[Any]]) -> Rules:
    """What `EgressPolicy.to_json` wrote."""

    def names(key: str) -> tuple[str, ...]:
        return tuple(policy[key])

    def ported(key: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((entry, tuple(ports)) for entry, ports in policy[key])

    compiled = EgressPolicy(
        http_names=names("http_names"),
        http_suffixes=names("http_suffixes"),
        tls_names=names("tls_names"),
        tls_suffixes=names("tls_suffixes"),
        other_names=ported("other_names"),
        other_suffixes=ported("other_suffixes"),
        ranges=ported("ranges"),
    )
    return Rules(compiled, frozenset((IPv4Address(address), int(port)) for address, port in exceptions))
