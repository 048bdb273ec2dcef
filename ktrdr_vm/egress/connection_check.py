"""`egress test`: the verdict on a connection, from the parts that enforce the rules and not from a copy of the rules.

The resolver is queried as the guest queries it, and the sets of the table and the lists of the proxy are read where
they are enforced. The order is that of the firewall: the owner's exceptions, reserved ranges and the host itself,
ranges, the by-name frontends, the resolver's sets.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.host.nft import has_element
from ktrdr_vm.plan.guard_interface import DNS_PORT
from ktrdr_vm.profile.scalars import parse_host

_LOOKUP_LIMIT = 8.0


@dataclass(frozen=True)
class Verdict:
    """The verdict on a connection. `kind` is the part that decides, as in the ledger: dns, http, tls, tcp or drop, or
    that of a service of the gateway; `rule` is the rule that it applies."""

    allowed: bool
    kind: str
    rule: str
    message: str
    address: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge_connection(directory: Path, host: str, port: int) -> Verdict:
    """The verdict on a connection of a guest to `host`, a name or an IPv4 address, on TCP `port`; `directory` is the
    folder of its guard.

    UsageError if `host` or `port` is not valid; ProvisionError if the guard does not answer.
    """
    if not 0 < port < 65536:
        raise UsageError(f"{port} is not a port", where="PORT", hint="a number from 1 to 65535")
    address = _parse_address(host)
    name = "" if address else _parse_name(host)
    if name:
        refused, address = _look_up(directory, name)
        if refused is not None:
            return refused
    return Verdict(**GuardClient(directory).judge(name, address, port))


def _parse_address(host: str) -> str:
    try:
        return str(IPv4Address(host))
    except ValueError:
        return ""


def _parse_name(host: str) -> str:
    name = host.rstrip(".").lower()
    try:
        if not name.startswith("*"):
            return parse_host(name)
    except ValueError:
        pass
    raise UsageError(
        f"{host!a} is neither a name nor an IPv4 address", where="HOST", hint="such as api.example.com or 198.51.100.7"
    )


def _look_up(directory: Path, name: str) -> tuple[Verdict | None, str]:
    """A refusal of the resolver, or the first address, which is the one that clients try first."""
    import dns.exception
    import dns.message
    import dns.query
    import dns.rcode
    import dns.rdatatype

    try:
        place = str(json.loads((directory / "guard.json").read_bytes())["loopback"])
        reply = dns.query.udp(dns.message.make_query(name, "A"), place, timeout=_LOOKUP_LIMIT, port=DNS_PORT)
    except (dns.exception.DNSException, OSError) as error:
        raise ProvisionError(
            f"the resolver does not answer: {type(error).__name__}",
            where=str(directory),
            hint="nothing leaves the instance while it is down; `ktrdr-vm status` shows it",
        ) from None
    if reply.rcode() == dns.rcode.NXDOMAIN:
        return Verdict(False, "dns", "name", "the resolver does not know the name: no rule and no grant names it"), ""
    if reply.rcode() != dns.rcode.NOERROR:
        return Verdict(False, "dns", "upstream", "the host's own resolvers do not answer for the name"), ""
    addresses = [record.address for rrset in reply.answer if rrset.rdtype == dns.rdatatype.A for record in rrset]
    if not addresses:
        return Verdict(False, "dns", "reserved", "the name has no address that may be reached"), ""
    return None, str(addresses[0])


class Judge:
    """The part in the guard: reads the sets and the lists of the proxy as they are now."""

    def __init__(
        self, gateway: str, services: dict[int, str], sets: AllowSets, proxy: ProxyControl, granting: Granting
    ) -> None:
        """`services` are ports of the gateway, each with the kind of its lines in the ledger."""
        self._gateway = gateway
        self._services = services
        self._sets = sets
        self._proxy = proxy
        self._granting = granting

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """The verdict as JSON. `name` may be empty. ValueError and KtrdrError for a request that is not valid."""
        name = parse_host(request["name"]) if request["name"] else ""
        verdict = self._judge(name, str(IPv4Address(request["address"])), int(request["port"]))
        if not verdict.allowed and self._sets.rules.policy.observe and not self._is_closed(verdict.address):
            verdict = replace(
                verdict, allowed=True, rule="observe", message="an observe run lets it pass and records it"
            )
        return verdict.to_json()

    def _is_closed(self, address: str) -> bool:
        return self._has("reserved", address) or self._has("on_link", address) or is_local(address)

    def _judge(self, name: str, address: str, port: int) -> Verdict:
        if address == self._gateway and port in self._services:
            return Verdict(
                True, self._services[port], "guard", "a service of the guard, which checks requests", address
            )
        element = f"{address} . {port}"
        if self._has("exceptions", element) or self._has("granted_exceptions", element):
            return self._by_address(address, port, "the owner's exception for this address and port")
        if not (self._has("lan_names", element) or self._has("granted_lan_names", element)):
            if self._has("reserved", address):
                return Verdict(
                    False,
                    "drop",
                    "destination",
                    f"{address} is in a reserved range; only the owner's policy opens it",
                    address,
                )
            if is_local(address):
                return Verdict(False, "drop", "destination", f"{address} is the host itself", address)
            if self._has("on_link", address):
                message = f"{address} is in a network of this host; only the owner's policy opens it"
                return Verdict(False, "drop", "destination", message, address)
        elif port not in (80, 443):
            return self._by_address(
                address, port, "the resolver gave this address for an allowed name, and the owner lets it be in a LAN"
            )
        if self._has("ranges", element) or self._has("granted_ranges", element):
            return self._by_address(address, port, "an allowed range holds the address")
        if port in (80, 443):
            return self._by_name(name, address, port)
        if self._has("names", element) or self._has("granted_names", element):
            return self._by_address(address, port, "the resolver gave this address for an allowed name")
        return Verdict(False, "drop", "destination", f"no rule and no grant opens {address} on port {port}", address)

    def _has(self, name: str, element: str) -> bool:
        return has_element(self._sets.table, name, element, self._sets.namespace)

    def _by_address(self, address: str, port: int, message: str) -> Verdict:
        grant = self._sets.find_grant(address, port)
        return Verdict(True, "tcp", f"grant:{grant}" if grant else "address", message, address)

    def _by_name(self, name: str, address: str, port: int) -> Verdict:
        kind, word = ("http", "Host header") if port == 80 else ("tls", "server name")
        if not name:
            rule = "no-name" if kind == "tls" else "name"
            return Verdict(
                False, kind, rule, f"port {port} is judged by the {word}: test the name instead of the address", address
            )
        for file in (f"{kind}.names", f"{kind}.suffixes"):
            if self._proxy.matches(file, name):
                only = "TLS with this server name" if kind == "tls" else "HTTP with this Host header"
                return Verdict(
                    True, kind, "name", f"the proxy's list {file} holds the name; only {only} passes", address
                )
        for file in (f"{kind}.granted", f"{kind}.granted_suffixes"):
            grant = self._granting.find_grant(self._proxy.find_slot(file, name))
            if grant:
                return Verdict(True, kind, f"grant:{grant}", "a grant names it", address)
        return Verdict(False, kind, "name", f"the name is allowed, but not on port {port}", address)


def is_local(address: str) -> bool:
    """True if the host has the address, or if it is a broadcast, anycast or multicast address."""
    answered = process.run(["ip", "-j", "route", "get", address], timeout=10, check=False)
    if answered.exit_code != 0:
        return False
    return json.loads(answered.stdout)[0].get("type", "unicast") in ("local", "broadcast", "anycast", "multicast")
