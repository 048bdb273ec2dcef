"""The writer: the only part of the guard that changes nftables, and only elements of the sets in the two tables of its
own instance.

It receives typed elements from the resolver, which reads the guest's bytes, and does not trust them: each is checked
again. What a grant opens is in separate sets, so that a grant can end without a check of what else allows the same
address.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from ktrdr_vm.egress.grant import Grant
from ktrdr_vm.egress.rules import Rules, is_reserved_address
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.clock import boottime
from ktrdr_vm.host.nft import Table, load_ruleset
from ktrdr_vm.plan.guard_interface import ALLOWED_SIZE

# Seconds by which an element outlives the answer that it came from, so that it is renewed in time.
GRACE = 30
MIN_LIFE = 60
MAX_LIFE = 3600
# Seconds: an element that ends earlier than this was not renewed, because the name has moved to other addresses.
LATE = 25.0
# Maximum number of elements of ended grants that are kept, so that the last line of a flow names the grant that allowed
# it.
PAST = 256
_OPENED = ("names", "lan_names", "kept")
_GRANTED = ("granted_exceptions", "granted_lan_names", "granted_ranges", "granted_names")
# Sets of the table on the host, and those of them that the table in the namespace does not have. That one has all
# others.
_ON_HOST = frozenset({"upstreams", "upstreams6", "on_link", "lan_names", "granted_exceptions", "granted_lan_names"})
_ON_HOST_ONLY = frozenset({"upstreams", "upstreams6"})


@dataclass
class AllowSets:
    """The sets that packets are matched against, in the table of the namespace and in the one on the host, which have
    the same name."""

    table: str
    rules: Rules
    namespace: str = ""
    owners: dict[str, str] = field(default_factory=dict)
    """Address to the name for which the resolver last returned it."""
    clock: Callable[[], float] = boottime
    _live: dict[tuple[str, str], float] = field(default_factory=dict)
    """Set and element to the time of their expiry."""
    _upstreams: tuple[str, ...] | None = None
    _on_link: tuple[IPv4Network, ...] | None = None
    _is_on_link_loaded: bool = False
    _grants: dict[str, Grant] = field(default_factory=dict)
    _granted: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """Set and element of the grants' sets, to grant id and the time of expiry."""
    _held_back: list[str] | None = None
    """The commands that `together` will load; None outside of it."""
    _past: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """Elements that a grant has opened, or its range, to the id of the grant; kept for a while after its end."""

    def allow(self, name: str, addresses: Iterable[str], ttl: int) -> list[str]:
        """Open the name's ports at its addresses for `ttl` seconds. Returns the accepted addresses; the others were
        refused."""
        accepted, commands = [], []
        ends = self.clock() + min(max(ttl, MIN_LIFE), MAX_LIFE) + GRACE
        for text in list(addresses)[:64]:
            address = IPv4Address(text)
            reserved = is_reserved_address(address) or self.is_on_link(address)
            openings = self.rules.openings(name, address, closed=reserved)
            if not openings:
                continue
            accepted.append(str(address))
            for opening in openings:
                target = ("granted_" if opening.grant else "") + ("lan_names" if reserved else "names")
                for port in opening.ports if reserved else opening.other_ports:
                    commands += self._open((target, f"{address} . {port}"), ends, opening.grant)
        self._load(commands)
        for owned in accepted:
            if len(self.owners) >= ALLOWED_SIZE:
                self.owners.pop(next(iter(self.owners)))
            self.owners[owned] = name
        return accepted

    def _open(self, key: tuple[str, str], ends: float, grant: str) -> list[str]:
        if grant:
            # Limited by the grant: an address that the name had during the grant stays open for MAX_LIFE, or until the
            # grant ends.
            ends = min(max(ends, self.clock() + MAX_LIFE), self._grants[grant].ends)
            if key not in self._granted and len(self._granted) >= ALLOWED_SIZE:
                # Beyond the size of a set, no change of the grants could be loaded, revocations included.
                now = self.clock()
                self._granted = {one: held for one, held in self._granted.items() if max(held.values()) > now}
                self._refuse_full(len(self._granted))
            holders = self._granted.setdefault(key, {})
            holders[grant] = ends
            self._keep_past(key[1], grant)
            ends = max(holders.values())
        else:
            if key not in self._live and len(self._live) >= ALLOWED_SIZE:
                now = self.clock()
                self._live = {entry: end for entry, end in self._live.items() if end > now}
                self._refuse_full(len(self._live))
            self._live[key] = ends
        return self._renew(key, ends)

    def _refuse_full(self, count: int) -> None:
        if count >= ALLOWED_SIZE:
            raise ProvisionError(
                f"{ALLOWED_SIZE} addresses are open already", where=self.table, hint="name fewer hosts by wildcard"
            )

    def _renew(self, key: tuple[str, str], ends: float) -> list[str]:
        """Commands that set the timeout of an element. A plain `add` does not change a running timeout."""
        target, element = key
        life = f"{max(1, round((ends - self.clock()) * 1000))}ms"
        return [
            f"add element inet {self.table} {target} {{ {element} timeout {life} }}",
            f"delete element inet {self.table} {target} {{ {element} }}",
            f"add element inet {self.table} {target} {{ {element} timeout {life} }}",
        ]

    def set_upstreams(self, addresses: Iterable[str]) -> None:
        """Set the name servers that the user of the resolver may reach. Nothing is written if they have not changed."""
        # nftables has no scope of an address, such as `%eth0`.
        wanted = tuple(sorted({address.partition("%")[0] for address in addresses}))
        if wanted == self._upstreams:
            return
        commands = [f"flush set inet {self.table} {name}" for name in ("upstreams", "upstreams6")]
        for address in wanted:
            commands.append(f"add element inet {self.table} upstreams{'6' if ':' in address else ''} {{ {address} }}")
        self._load(commands)
        self._upstreams = wanted

    @property
    def on_link(self) -> tuple[IPv4Network, ...]:
        """The networks that the host is connected to, which are closed like reserved ranges."""
        return self._on_link or ()

    def set_on_link(self, networks: Iterable[IPv4Network]) -> list[tuple[IPv4Network, IPv4Network]]:
        """Close these networks. Returns the ranges of the profile that overlap with one of them, each with that one. If
        the networks have not changed, nothing is written and nothing is returned."""
        wanted = tuple(networks)
        if wanted == self._on_link and self._is_on_link_loaded:
            return []
        commands = [f"flush set inet {self.table} on_link"]
        commands += [f"add element inet {self.table} on_link {{ {network} }}" for network in wanted]
        self._load(commands)
        self._on_link, self._is_on_link_loaded = wanted, True
        return [
            (allowed, network) for allowed, _ in self.rules.ranges for network in wanted if allowed.overlaps(network)
        ]

    def is_on_link(self, address: IPv4Address) -> bool:
        return any(address in network for network in self.on_link)

    @property
    def late(self) -> set[tuple[str, int]]:
        """Addresses and ports whose elements end soon: those that a name no longer has, and those that are kept for
        open connections."""
        now = self.clock()
        found = set()
        for (target, element), end in self._live.items():
            if target in ("names", "kept") and now < end < now + LATE:
                address, _, port = element.partition(" . ")
                found.add((address, int(port)))
        return found

    def keep(self, places: Iterable[tuple[str, int]]) -> None:
        """Keep open connections to these addresses and ports, and allow no new ones. Called repeatedly while they are
        open."""
        ends = self.clock() + MIN_LIFE
        commands = [line for address, port in places for line in self._open(("kept", f"{address} . {port}"), ends, "")]
        self._load(commands)

    def set_grants(self, rules: Rules, grants: Iterable[Grant], *, afresh: bool = False) -> None:
        """Apply the grants that are valid now; what other grants had opened is closed in the same transaction.

        With `afresh` the rules of the profile have changed as well, and nothing that they had opened remains.
        """
        self.rules = rules
        self._grants = {grant.id: grant for grant in grants}
        kept: dict[tuple[str, str], dict[str, float]] = {}
        for key, holders in self._granted.items():
            # Of a grant that was changed, the end may be earlier now.
            standing = {one: min(end, self._grants[one].ends) for one, end in holders.items() if one in self._grants}
            if standing and key[0] in ("granted_names", "granted_lan_names"):
                kept[key] = standing
        for grant in self._grants.values():
            if grant.rule.cidr is not None:
                for port in grant.rule.ports:
                    owned = (
                        grant.rule.cidr.prefixlen == 32
                        and (grant.rule.cidr.network_address, port) in self.rules.exceptions
                    )
                    target = "granted_exceptions" if owned else "granted_ranges"
                    destination = grant.rule.cidr.network_address if target == "granted_exceptions" else grant.rule.cidr
                    kept.setdefault((target, f"{destination} . {port}"), {})[grant.id] = grant.ends
                    self._keep_past(f"{destination} . {port}", grant.id)
        self._granted = kept
        commands = []
        if afresh:
            self._live.clear()
            commands = [f"flush set inet {self.table} {target}" for target in _OPENED]
        self._load(commands + self._granted_commands())

    def _granted_commands(self) -> list[str]:
        """Commands that write the grants' sets completely. Of nested ranges only the widest is written, because nft
        refuses overlaps."""
        commands = [f"flush set inet {self.table} {target}" for target in _GRANTED]
        now = self.clock()
        ranges: list[tuple[str, str]] = []
        for key, holders in self._granted.items():
            if max(holders.values()) <= now:
                continue
            if key[0] == "granted_ranges":
                ranges.append(key)
            else:
                commands += self._renew(key, max(holders.values()))[-1:]
        for key in widest(ranges):
            commands += self._renew(key, max(self._granted[key].values()))[-1:]
        return commands

    def refill(self) -> None:
        """Restore all unexpired elements in tables that were just loaded again, so that allowed flows continue."""
        now = self.clock()
        upstreams, self._upstreams = self._upstreams, None
        self._is_on_link_loaded = False
        with self.together():
            self.set_upstreams(upstreams or ())
            self.set_on_link(self.on_link)
            self._load([line for key, end in self._live.items() if end > now for line in self._renew(key, end)])
            self._load(self._granted_commands())

    def _load(self, commands: list[str]) -> None:
        """Load the commands, in one transaction for each table. Each command changes one set, its fifth word, in one
        table or in both."""
        if self._held_back is not None:
            self._held_back += commands
            return
        for namespace, is_there in (
            ("", _ON_HOST.__contains__),
            (self.namespace, lambda name: name not in _ON_HOST_ONLY),
        ):
            chosen = [line for line in commands if is_there(line.split(maxsplit=5)[4])]
            if chosen:
                load_ruleset("\n".join(chosen) + "\n", namespace)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Load what is changed inside it at its end, in one transaction for each table."""
        commands: list[str] = []
        self._held_back = commands
        try:
            yield
            self._held_back = None
            self._load(commands)
        except BaseException:
            # What was not loaded is written again by the next call. Networks of the host stay known, and so closed.
            self._held_back = self._upstreams = None
            self._is_on_link_loaded = False
            raise

    def adopt(self, entries: Table) -> None:
        """Take over what an earlier guard had opened by the rules of the profile. `entries` lists the table of the
        namespace."""
        now = self.clock()
        for entry in entries:
            target = entry.get("set", {}).get("name")
            if target in _OPENED:
                for element in entry["set"].get("elem", []):
                    address, port = element["elem"]["val"]["concat"]
                    self._live[target, f"{address} . {port}"] = now + float(element["elem"]["expires"])

    def is_open(self, address: str, port: int) -> bool:
        """True if any set allows a flow to this address and port."""
        return self._is_in_profile(address, port) or bool(self.find_grant(address, port))

    def find_grant(self, address: str, port: int) -> str:
        """The grant that opens an address and port that the profile does not open; empty if there is none."""
        if self._is_in_profile(address, port):
            return ""
        for target in ("granted_names", "granted_lan_names"):
            for grant in self._granted.get((target, f"{address} . {port}"), {}):
                return grant
        for one in self._grants.values():
            if one.rule.cidr is not None and IPv4Address(address) in one.rule.cidr and port in one.rule.ports:
                return one.id
        return ""

    def find_past_grant(self, address: str, port: int) -> str:
        """Like `find_grant`, for a flow that may have ended with its grant."""
        if self._is_in_profile(address, port):
            return ""
        for element, grant in reversed(self._past.items()):
            network, _, number = element.partition(" . ")
            if int(number) == port and IPv4Address(address) in IPv4Network(network):
                return grant
        return self.find_grant(address, port)

    def _keep_past(self, element: str, grant: str) -> None:
        self._past[element] = grant
        self._past.move_to_end(element)
        while len(self._past) > PAST:
            self._past.popitem(last=False)

    def _is_in_profile(self, address: str, port: int) -> bool:
        where, now = IPv4Address(address), self.clock()
        if any(self._live.get((target, f"{address} . {port}"), 0) > now for target in _OPENED):
            return True
        return any(port in ports and where in network for network, ports in self.rules.ranges)


def widest(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of elements `network . port`, those that no other one contains."""
    parsed = []
    for target, element in keys:
        network, port = element.split(" . ")
        parsed.append((IPv4Network(network), port, (target, element)))
    parsed.sort(key=lambda one: (one[0].prefixlen, one[0].network_address))
    standing: list[tuple[IPv4Network, str, tuple[str, str]]] = []
    for one in parsed:
        if not any(one[1] == wider[1] and one[0].subnet_of(wider[0]) for wider in standing):
            standing.append(one)
    return [key for _, _, key in standing]
