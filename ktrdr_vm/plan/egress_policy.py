"""The compiled allowlist: sorted, without duplicates, deny by default. Guard, proxy and resolver read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.profile.egress_rule import EgressRule


@dataclass(frozen=True)
class EgressPolicy:
    """Names by the listener that checks them. A suffix begins with a dot and matches every name below it.

    The proxy checks `http` and `tls` on ports 80 and 443; the resolver opens ports of `other` by address.
    """

    http_names: tuple[str, ...] = ()
    http_suffixes: tuple[str, ...] = ()
    tls_names: tuple[str, ...] = ()
    tls_suffixes: tuple[str, ...] = ()
    other_names: tuple[tuple[str, tuple[int, ...]], ...] = ()
    other_suffixes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ranges: tuple[tuple[str, tuple[int, ...]], ...] = ()
    broker_names: tuple[str, ...] = ()
    """Hosts of brokered secrets, which the resolver resolves for the proxy. The guest cannot reach them directly."""
    observe: bool = False
    """Every public address may be reached over TCP, and connections without a rule are recorded as observed."""

    @property
    def name_lists(self) -> dict[str, str]:
        """The list files of the proxy, one name a line."""
        lists = {
            "http.names": self.http_names,
            "http.suffixes": self.http_suffixes,
            "tls.names": self.tls_names,
            "tls.suffixes": self.tls_suffixes,
        }
        return {name: "".join(f"{entry}\n" for entry in entries) for name, entries in lists.items()}

    def to_json(self) -> dict[str, Any]:
        lists = {name: value for name, value in vars(self).items() if name != "observe"}
        return {
            name: [list(entry) if isinstance(entry, tuple) else entry for entry in value]
            for name, value in lists.items()
        } | {"observe": self.observe}


def compile_policy(rules: Iterable[EgressRule], *, brokered: Iterable[str] = (), observe: bool = False) -> EgressPolicy:
    """Compile rules with expanded presets."""
    http: set[str] = set()
    tls: set[str] = set()
    other: dict[str, set[int]] = {}
    ranges: dict[str, set[int]] = {}
    for rule in rules:
        if rule.cidr is not None:
            ranges.setdefault(str(rule.cidr), set()).update(rule.ports)
        elif rule.host:
            name = rule.host.removeprefix("*") if rule.host.startswith("*.") else rule.host
            for port in rule.ports:
                if port == 80:
                    http.add(name)
                elif port == 443:
                    tls.add(name)
                else:
                    other.setdefault(name, set()).add(port)
    by_name = {name: tuple(sorted(ports)) for name, ports in other.items()}
    return EgressPolicy(
        http_names=_exact(http),
        http_suffixes=_suffixes(http),
        tls_names=_exact(tls),
        tls_suffixes=_suffixes(tls),
        other_names=tuple((name, by_name[name]) for name in _exact(by_name)),
        other_suffixes=tuple((name, by_name[name]) for name in _suffixes(by_name)),
        ranges=tuple((text, tuple(sorted(ports))) for text, ports in sorted(ranges.items())),
        broker_names=tuple(sorted(set(brokered))),
        observe=observe,
    )


def _exact(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if not name.startswith(".")))


def _suffixes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name.startswith(".")))
