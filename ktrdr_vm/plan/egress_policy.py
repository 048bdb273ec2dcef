"""The compiled allowlist: sorted, without doubles, deny by default. What the guard, the proxy and the resolver all read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.profile.egress_rule import EgressRule


@dataclass(frozen=True)
class EgressPolicy:
    """Names by the listener that judges them. A suffix begins with a dot and stands for every name below it.

    `http` and `tls` are judged by the proxy on ports 80 and 443; `other` are ports that the resolver opens by address.
    """

    http_names: tuple[str, ...] = ()
    http_suffixes: tuple[str, ...] = ()
    tls_names: tuple[str, ...] = ()
    tls_suffixes: tuple[str, ...] = ()
    other_names: tuple[tuple[str, tuple[int, ...]], ...] = ()
    other_suffixes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ranges: tuple[tuple[str, tuple[int, ...]], ...] = ()
    broker_names: tuple[str, ...] = ()
    """Hosts of brokered secrets: the resolver knows them, for the proxy, and nothing else lets the guest reach them."""
    observe: bool = False
    """Every public address may be reached over TCP, and what the rest would not have allowed is recorded as observed."""

    @property
    def name_lists(self) -> dict[str, str]:
        """The proxy's list files, one name a line."""
        lists = {
            "http.names": self.http_names,
            "http.suffixes": self.http_suffixes,
            "tls.names": self.tls_names,
            "tls.suffixes": self.tls_suffixes,
        }
        return {name: "".join(f"{entry}\n" for entry in entries) for name, entries in lists.items()}

    def to_json(self) -> dict[str, Any]:
        lists = {name: value for name, value in vars(self).items() if name != "observe"}
        return {name: [list(entry) if isinstance(entry, tuple) else entry for entry in value] for name, value in lists.items()} | {
            "observe": self.observe
        }


def compile_policy(rules: Iterable[EgressRule], *, brokered: Iterable[str] = (), observe: bool = False) -> EgressPolicy:
    """Rules with presets already expanded."""
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
