"""The writer: the only part of the guard that changes nftables, and only elements of its own instance's sets.

It takes typed elements from the resolver, which reads the guest's bytes, and believes none of them: each is judged again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.host import process
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
                # A plain `add` does not renew a timeout that runs.
                commands += [
                    f"add element inet {self.table} {target} {{ {element} timeout {life}s }}",
                    f"delete element inet {self.table} {target} {{ {element} }}",
                    f"add element inet {self.table} {target} {{ {element} timeout {life}s }}",
                ]
        if commands:
            process.run(["nft", "-f", "-"], stdin="\n".join(commands).encode() + b"\n", timeout=10)
        for owned in accepted:
            if len(self.owners) >= ALLOWED_SIZE:
                self.owners.pop(next(iter(self.owners)))
            self.owners[owned] = name
        return accepted

    def read_drops(self) -> list[Drop] | None:
        """What the table counted since the last call, or None when the table is gone."""
        listed = process.run(["nft", "-j", "list", "table", "inet", self.table], timeout=10, check=False)
        if listed.exit_code != 0:
            return None
        drops = []
        for entry in json.loads(listed.stdout)["nftables"]:
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

    def forget_counts(self) -> None:
        """A new table counts from zero."""
        self._seen.clear()
