"""Decisions on names and addresses. Pure. The resolver applies them, and the writer of the sets, which does not trust
the resolver, applies them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ktrdr_vm.plan.egress_policy import EgressPolicy
from ktrdr_vm.profile.reserved import RESERVED

Endpoint = tuple[IPv4Address, int]


@dataclass(frozen=True)
class Opening:
    """Ports of a name at one address, and what allows them. `grant` is empty for the rules of the profile."""

    ports: tuple[int, ...]
    other_ports: tuple[int, ...]
    grant: str = ""
    observed: bool = False
    """True if neither a rule nor a grant matches, and an observe run allows the name."""

    @property
    def rule(self) -> str:
        """What allows it, as in the ledger: `grant:` and an id, `observe`, or `name`."""
        return f"grant:{self.grant}" if self.grant else "observe" if self.observed else "name"


@dataclass(frozen=True)
class Rules:
    """The compiled allowlist of one instance, the owner's exceptions in the reserved ranges, and the grants that apply
    now."""

    policy: EgressPolicy
    exceptions: frozenset[Endpoint] = frozenset()
    grants: tuple[tuple[str, EgressPolicy], ...] = ()
    """Grant id and what it allows; the latest expiry first."""

    def ports(self, name: str) -> tuple[int, ...]:
        """Every port on which the name may be reached, through any listener; empty if the name is not allowed."""
        return tuple(sorted({port for opening in self._openings(name) for port in opening.ports}))

    def other_ports(self, name: str) -> tuple[int, ...]:
        """The ports that the resolver opens by address: all but 80 and 443, which the proxy checks by name."""
        return tuple(sorted({port for opening in self._openings(name) for port in opening.other_ports}))

    def rule(self, name: str) -> str:
        """What allows the name: `name` for the profile, `grant:` and an id, or `observe`; empty if nothing does."""
        for opening in self._openings(name):
            return opening.rule
        return ""

    def openings(self, name: str, address: IPv4Address, *, closed: bool = False) -> tuple[Opening, ...]:
        """What may be opened for the name at an address.

        At an address that is reserved, or that the caller states to be `closed` like these, an opening needs an
        exception of the owner for each of its ports.
        """
        found = tuple(self._openings(name))
        if not closed and not is_reserved_address(address):
            return found
        owned = (opening for opening in found if not opening.observed)
        return tuple(opening for opening in owned if all((address, port) in self.exceptions for port in opening.ports))

    def judge_address(self, name: str, address: IPv4Address) -> str:
        """The reason why an answer may not be used; empty if it may."""
        return "" if self.openings(name, address) or not self.rule(name) else f"{address} is in a reserved range"

    @cached_property
    def ranges(self) -> tuple[tuple[IPv4Network, tuple[int, ...]], ...]:
        """The address ranges of the profile, and their ports."""
        return tuple((IPv4Network(text), ports) for text, ports in self.policy.ranges)

    def _openings(self, name: str) -> Iterator[Opening]:
        if "\\" in name:
            # A dot in a label is escaped, and so is a byte that no host name contains: as text, `x\.mine.example.com`
            # has the suffix `.mine.example.com`, but it is not in that domain.
            return
        for grant, policy in (("", self.policy), *self.grants):
            ports = _ports(policy, name)
            if ports:
                yield Opening(ports, tuple(_other_ports(policy, name)), grant)
        if self.policy.observe and name:
            yield Opening((), (), observed=True)


def is_reserved_address(address: IPv4Address) -> bool:
    return any(address in network for network in RESERVED)


def _ports(policy: EgressPolicy, name: str) -> tuple[int, ...]:
    ports = set(_other_ports(policy, name))
    if _listed(name, policy.http_names, policy.http_suffixes):
        ports.add(80)
    if _listed(name, policy.tls_names, policy.tls_suffixes):
        ports.add(443)
    if name in policy.broker_names:
        ports.add(443)
    return tuple(sorted(ports))


def _other_ports(policy: EgressPolicy, name: str) -> list[int]:
    ports: set[int] = set()
    for entry, allowed in policy.other_names:
        if name == entry:
            ports.update(allowed)
    for suffix, allowed in policy.other_suffixes:
        if name.endswith(suffix) and name != suffix:
            ports.update(allowed)
    return sorted(ports)


def _listed(name: str, names: tuple[str, ...], suffixes: tuple[str, ...]) -> bool:
    return name in names or any(name.endswith(suffix) and name != suffix for suffix in suffixes)


def policy_from_json(policy: dict[str, Any]) -> EgressPolicy:
    """The policy that `EgressPolicy.to_json` wrote."""

    def names(key: str) -> tuple[str, ...]:
        return tuple(policy[key])

    def ported(key: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((entry, tuple(ports)) for entry, ports in policy[key])

    return EgressPolicy(
        http_names=names("http_names"),
        http_suffixes=names("http_suffixes"),
        tls_names=names("tls_names"),
        tls_suffixes=names("tls_suffixes"),
        other_names=ported("other_names"),
        other_suffixes=ported("other_suffixes"),
        ranges=ported("ranges"),
        # Grants that were stored by a version without broker names lack the key.
        broker_names=tuple(policy.get("broker_names", ())),
        observe=bool(policy["observe"]),
    )


def rules_from_json(
    policy: dict[str, Any], exceptions: list[list[Any]], grants: list[list[Any]] | None = None
) -> Rules:
    """`grants` are pairs of id and policy."""
    return Rules(
        policy_from_json(policy),
        frozenset((IPv4Address(address), int(port)) for address, port in exceptions),
        tuple((str(grant), policy_from_json(allowed)) for grant, allowed in grants or []),
    )
