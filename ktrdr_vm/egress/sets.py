"""The writer: the only part of the guard that changes nftables, and only elements of its own instance's sets.

It takes typed elements from the resolver, which reads the guest's bytes, and believes none of them: each is judged again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.host.nft import Table, load_ruleset
from ktrdr_vm.plan.nftables import ALLOWED_SIZE
from ktrdr_vm.profile.policy import RESERVED

# An element outlives the answer it came from by this much, so that a renewal is never late.
GRACE = 30
MIN_LIFE = 60
MAX_LIFE = 3600


@dataclass(frozen=True)
class Drop:
    """Packets that were dropped since the last look."""

    address: str
    protocol: str
    port: int
    rule: str
    count: int


@dataclass
class AllowSets:
    """The sets `names` and `lan_names` of one table."""

    table: str
    rules: Rules
    owners: dict[str, str] = field(default_factory=dict)
    """Address to the name it was last given for."""
    clock: Callable[[], float] = time.monotonic
    _live: dict[tuple[str, str], float] = field(default_factory=dict)
    """Set and element to the time when it ends."""
    _seen: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def allow(self, name: str, addresses: Iterable[str], ttl: int) -> list[str]:
        """Open the name's ports at its addresses for `ttl` seconds. Returns the addresses that stand; the others were refused."""
        accepted, commands = [], []
        life = min(max(ttl, MIN_LIFE), MAX_LIFE) + GRACE
        other_ports = self.rules.other_ports(name)
        for text in list(addresses)[:64]:
            address = IPv4Address(text)
            if self.rules.judge_address(name, address) or not self.rules.ports(name):
                continue
            accepted.append(str(address))
            reserved = any(address in network for network in RESERVED)
            target = "lan_names" if reserved else "names"
            for port in self.rules.ports(name) if reserved else other_ports:
                element = f"{address} . {port}"
                commands += self._renew(target, element, life)
                self._remember((target, element), self.clock() + life)
        if commands:
            load_ruleset("\n".join(commands) + "\n")
        for owned in accepted:
            if len(self.owners) >= ALLOWED_SIZE:
                self.owners.pop(next(iter(self.owners)))
            self.owners[owned] = name
        return accepted

    def _renew(self, target: str, element: str, life: int) -> list[str]:
        """A plain `add` does not renew a timeout that runs."""
        return [
            f"add element inet {self.table} {target} {{ {element} timeout {life}s }}",
            f"delete element inet {self.table} {target} {{ {element} }}",
            f"add element inet {self.table} {target} {{ {element} timeout {life}s }}",
        ]

    def _remember(self, key: tuple[str, str], expires: float) -> None:
        self._live[key] = expires
        if len(self._live) > ALLOWED_SIZE:
            now = self.clock()
            self._live = {entry: end for entry, end in self._live.items() if end > now}

    def refill(self) -> None:
        """Put back what still lives into a table that was just loaded anew, so that no allowed flow ends with it."""
        self._seen.clear()
        now = self.clock()
        commands = [
            line for (target, element), end in self._live.items() if end > now for line in self._renew(target, element, int(end - now) + 1)
        ]
        if commands:
            load_ruleset("\n".join(commands) + "\n")

    def read_drops(self, entries: Table) -> list[Drop]:
        """What the table counted since the last call. `entries` is its listing."""
        drops = []
        for entry in entries:
            if "counter" in entry:
                counter = entry["counter"]
                drops += self._news(("", counter["name"], 0), counter["packets"], counter["name"])
            elif entry.get("set", {}).get("name") in ("denied", "denied_protocols"):
                for element in entry["set"].get("elem", []):
                    parts, packets = element["elem"]["val"]["concat"], element["elem"]["counter"]["packets"]
                    key = (str(parts[0]), str(parts[1]), int(parts[2]) if len(parts) > 2 else 0)
                    drops += self._news(key, packets, "destination")
        return drops

    def _news(self, key: tuple[str, str, int], packets: int, rule: str) -> list[Drop]:
        new = packets - self._seen.get(key, 0)
        self._seen[key] = packets
        if new <= 0:
            return []
        return [Drop(key[0], key[1] if rule == "destination" else "", key[2], rule, new)]
