"""The two nftables tables of an instance. Both have its name.

In its network namespace each packet of the guest is checked by its original address. There is no other interface to
forward it to. On the host, where the proxy and the resolver dial for it, each packet of their users is checked again.

Order in `guest_in`: sender (anti-spoof) → services of the gateway (DNS) → exceptions of the owner's policy → reserved
ranges and the host itself → 80 and 443, which the proxy checks by name → the allow sets → drop, counted by destination.
No `ct state established accept` precedes these rules, so a connection ends with the element that allowed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Allocation
from ktrdr_vm.plan.guard_interface import (
    ALLOWED_SIZE,
    DENIED_SIZE,
    DNS_PORT,
    GUEST_MAC,
    HTTP_PORT,
    MAX_FLOWS,
    OTHER_PORT,
    OTLP_PORT,
    TLS_PORT,
)
from ktrdr_vm.plan.telemetry import render_sender
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.reserved import RESERVED, is_reserved

_OBSERVED = "        # Observe mode: all destinations that are not reserved.\n        meta l4proto tcp accept\n"


@dataclass(frozen=True)
class _Interface:
    """The two ends of the link, by interface and address."""

    tap: str
    mac: str
    gateway: str
    guest: str
    served: tuple[int, ...]
    """Ports of the gateway."""
    observe: bool


def render_ruleset(
    identity: Identity,
    home: str,
    allocation: Allocation,
    rules: tuple[EgressRule, ...],
    reserved: tuple[tuple[IPv4Address, int], ...] = (),
    *,
    services: tuple[int, ...] = (),
    has_telemetry: bool = False,
    observe: bool = False,
) -> str:
    """The table in the namespace: one transaction that replaces the whole of it.

    `reserved` are the exceptions of the owner's policy, used if a rule names them.

    `services` are the ports of the gateway except DNS, and OTLP if it `has_telemetry`: the inbox of escalations, and
    one for each host of a brokered secret. With `observe`, TCP to every public address is accepted.
    """
    served = (DNS_PORT, *((OTLP_PORT,) if has_telemetry else ()), *services)
    on = _Interface(identity.tap, GUEST_MAC, allocation.gateway, allocation.guest, served, observe)
    ranges, exceptions = _addresses(rules, frozenset(reserved))
    sections = (
        _render_closed_sets(),
        _render_exceptions(exceptions),
        _render_ranges(ranges),
        _render_opened_sets(),
        _render_counts(),
        _render_guest_in(on),
        _render_flows(on),
        _render_redirects(on),
        _render_listeners(on),
    )
    return _render_table(identity, home, sections)


def render_host_ruleset(
    identity: Identity,
    home: str,
    allocation: Allocation,
    rules: tuple[EgressRule, ...],
    reserved: tuple[tuple[IPv4Address, int], ...] = (),
    collector: Collector | None = None,
) -> str:
    """The table on the host: what the users of the proxy, the resolver and, with a `collector`, the sender of telemetry
    may reach."""
    _, exceptions = _addresses(rules, frozenset(reserved))
    sections = (
        _render_closed_sets(),
        _render_exceptions(exceptions),
        _render_resolver(allocation),
        _render_proxy(allocation),
        render_sender(collector, allocation.sender_uid),
    )
    return _render_table(identity, home, sections)


def _render_table(identity: Identity, home: str, sections: Iterable[str]) -> str:
    return f"""\
add table inet {identity.table}
delete table inet {identity.table}
table inet {identity.table} {{
    comment "{identity.mark(home)}"

{"".join(sections)}}}
"""


def _render_closed_sets() -> str:
    """Destinations that nothing but an exception opens, in both tables."""
    return f"""\
    set reserved {{
        type ipv4_addr
        flags interval
        elements = {{ {_join(map(str, RESERVED))} }}
    }}

    # The addresses of the host and the networks of its interfaces, kept by the guard: a neighbour counts as LAN even if its address is
    # public.
    set on_link {{
        type ipv4_addr
        flags interval, timeout
    }}

"""


def _render_exceptions(exceptions: list[str]) -> str:
    """Exceptions to the closed sets, in both tables."""
    return f"""\
    # Addresses of the owner's policy that the profile names: the only exceptions to the reserved ranges.
    set exceptions {{
        type ipv4_addr . inet_service{_elements(exceptions)}
    }}

    # Addresses of names that the owner allows in a reserved range, such as the mirror of a company, until the TTL of the answer.
    set lan_names {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

    # The same two for grants. Elements time out with their grant, also if the guard does not run.
    set granted_exceptions {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

    set granted_lan_names {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

"""


def _render_ranges(ranges: list[str]) -> str:
    return f"""\
    # Address ranges that the profile names, while the instance exists.
    set ranges {{
        type ipv4_addr . inet_service
        flags interval{_elements(ranges)}
    }}

"""


def _render_opened_sets() -> str:
    """Sets that the guard fills: addresses of the resolver, and destinations of grants."""
    return f"""\
    # Addresses that the resolver returned for allowed names with other ports, until the TTL of the answer.
    set names {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

    # Addresses that a name had when a connection to it began, while that connection exists; not for new connections.
    set kept {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

    # Destinations of grants.
    set granted_ranges {{
        type ipv4_addr . inet_service
        flags interval, timeout
    }}

    set granted_names {{
        type ipv4_addr . inet_service
        flags timeout
        size {ALLOWED_SIZE}
    }}

"""


def _render_counts() -> str:
    """Counters of dropped packets by destination or reason, which the guard reads for the ledger."""
    return f"""\
    set denied {{
        type ipv4_addr . inet_proto . inet_service
        flags dynamic
        size {DENIED_SIZE}
        counter
    }}

    set denied_protocols {{
        type ipv4_addr . inet_proto
        flags dynamic
        size {DENIED_SIZE}
        counter
    }}

    counter not_ipv4 {{ }}
    counter spoofed {{ }}
    counter uncounted {{ }}
    counter ended {{ }}
    counter crowded {{ }}

"""


def _render_guest_in(on: _Interface) -> str:
    """The first chain for packets of the guest."""
    return f"""\
    chain guest_in {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != "{on.tap}" accept
        meta nfproto != ipv4 counter name not_ipv4 drop
        ether saddr != {on.mac} counter name spoofed drop
        ip saddr != {on.guest} counter name spoofed drop
        ip daddr {on.gateway} tcp sport 22 ct direction reply ct state established accept
        # A late answer to an SSH connection that the host has closed is not counted as denied.
        ip daddr {on.gateway} tcp sport 22 ct state invalid drop
        ip daddr {on.gateway} udp dport {DNS_PORT} accept
        ip daddr {on.gateway} tcp dport {{ {_join(map(str, on.served))} }} accept
        ip daddr . tcp dport @exceptions accept
        ip daddr . tcp dport @lan_names accept
        ip daddr . tcp dport @granted_exceptions accept
        ip daddr . tcp dport @granted_lan_names accept
        ip daddr @reserved jump deny
        ip daddr @on_link jump deny
        fib daddr type {{ local, broadcast, anycast, multicast }} jump deny
        tcp dport {{ 80, 443 }} accept
        ip daddr . tcp dport @ranges accept
        ip daddr . tcp dport @granted_ranges accept
        ip daddr . tcp dport @names accept
        ip daddr . tcp dport @granted_names accept
        ip daddr . tcp dport @kept ct state established accept
{_OBSERVED if on.observe else ""}        # A connection whose permission ended: reset, so that the client does not wait.
        meta l4proto tcp ct state established counter name ended reject with tcp reset
        jump deny
    }}

    chain deny {{
        meta l4proto {{ tcp, udp }} add @denied {{ ip daddr . meta l4proto . th dport }} drop
        meta l4proto != {{ tcp, udp }} add @denied_protocols {{ ip daddr . meta l4proto }} drop
        counter name uncounted drop
    }}

"""


def _render_flows(on: _Interface) -> str:
    """Connection tracking for the guest."""
    return f"""\
    # DNS over UDP is not tracked: each query would take an entry of the namespace's connection table.
    chain guest_raw {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{on.tap}" ip daddr {on.gateway} udp dport {DNS_PORT} notrack
    }}

    chain guard_raw {{
        type filter hook output priority raw; policy accept;
        oifname "{on.tap}" udp sport {DNS_PORT} notrack
    }}

    # Limits tracked connections, whose memory is the host's.
    chain guest_flows {{
        type filter hook prerouting priority mangle + 1; policy accept;
        iifname != "{on.tap}" accept
        ct state new ct count over {MAX_FLOWS} counter name crowded drop
    }}

"""


def _render_redirects(on: _Interface) -> str:
    """Redirection of connections to the listeners."""
    return f"""\
    chain guest_nat {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname != "{on.tap}" accept
        ip daddr {on.gateway} accept
        ip daddr . tcp dport @exceptions redirect to :{OTHER_PORT}
        ip daddr . tcp dport @ranges redirect to :{OTHER_PORT}
        ip daddr . tcp dport @granted_exceptions redirect to :{OTHER_PORT}
        ip daddr . tcp dport @granted_ranges redirect to :{OTHER_PORT}
        tcp dport 80 redirect to :{HTTP_PORT}
        tcp dport 443 redirect to :{TLS_PORT}
        meta l4proto tcp redirect to :{OTHER_PORT}
    }}

"""


def _render_listeners(on: _Interface) -> str:
    """Access to the listeners of the guard."""
    return f"""\
    chain guard_in {{
        type filter hook input priority filter; policy accept;
        ip daddr {on.gateway} tcp dport {OTHER_PORT} jump by_address
    }}

    # Connections by address are checked at the listener too: one that began on port 80 or 443 while a range was allowed would
    # otherwise continue.
    chain by_address {{
        meta l4proto tcp ct original ip daddr . ct original proto-dst @exceptions accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @lan_names accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @granted_exceptions accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @granted_lan_names accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @ranges accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @granted_ranges accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @names accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @granted_names accept
        meta l4proto tcp ct original ip daddr . ct original proto-dst @kept ct state established accept
        meta l4proto tcp {"accept" if on.observe else "counter name ended reject with tcp reset"}
    }}

"""


def _render_resolver(allocation: Allocation) -> str:
    """Permitted destinations of the user of the resolver, and who may query it on the host."""
    return f"""\
    counter resolver_strayed {{ }}

    # Only the proxy and root may query the resolver at its loopback address.
    chain resolver_out {{
        type filter hook output priority filter; policy accept;
        ip daddr {allocation.loopback} udp dport {DNS_PORT} meta skuid != {{ 0, {allocation.proxy_uid} }} drop
    }}

    # The name servers of the host, kept by the guard: the only destinations of the resolver's user.
    set upstreams {{
        type ipv4_addr
        flags timeout
        size 8
    }}

    set upstreams6 {{
        type ipv6_addr
        flags timeout
        size 8
    }}

    # A jump, so that packets of the kernel, such as a reset, are not counted as those of that user.
    chain resolver_sends {{
        type filter hook output priority filter; policy accept;
        meta skuid {allocation.resolver_uid} jump resolver_dials
    }}

    chain resolver_dials {{
        ip saddr {allocation.loopback} udp sport {DNS_PORT} accept
        ip daddr @upstreams meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept
        ip6 daddr @upstreams6 meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept
        counter name resolver_strayed drop
    }}

"""


def _render_proxy(allocation: Allocation) -> str:
    """Permitted destinations of the user of the proxy."""
    return f"""\
    counter proxy_reserved {{ }}

    # Outbound connections of the proxy are checked again by its user, so that a proxy under attack reaches no reserved address.
    chain proxy_out {{
        type filter hook output priority filter; policy accept;
        meta skuid {allocation.proxy_uid} jump proxy_dials
    }}

    chain proxy_dials {{
        ip daddr {allocation.loopback} udp dport {DNS_PORT} accept
        ip daddr . tcp dport @exceptions accept
        ip daddr . tcp dport @lan_names accept
        ip daddr . tcp dport @granted_exceptions accept
        ip daddr . tcp dport @granted_lan_names accept
        meta nfproto != ipv4 counter name proxy_reserved drop
        ip daddr @reserved counter name proxy_reserved drop
        ip daddr @on_link counter name proxy_reserved drop
        fib daddr type {{ local, broadcast, anycast, multicast }} counter name proxy_reserved drop
    }}
"""


def _addresses(
    rules: tuple[EgressRule, ...], reserved: frozenset[tuple[IPv4Address, int]]
) -> tuple[list[str], list[str]]:
    """Elements of `ranges` and of `exceptions`, sorted, without overlaps that nft would refuse."""
    exceptions = set()
    networks: dict[int, list[IPv4Network]] = {}
    for rule in rules:
        if rule.cidr is None:
            continue
        for port in rule.ports:
            if rule.cidr.prefixlen == 32 and (rule.cidr.network_address, port) in reserved:
                exceptions.add((rule.cidr.network_address, port))
            elif not is_reserved(rule.cidr):
                networks.setdefault(port, []).append(rule.cidr)
    ranges = []
    for port in sorted(networks):
        # The widest first; ranges within an earlier one are omitted.
        standing: list[IPv4Network] = []
        for network in sorted(set(networks[port]), key=lambda network: (network.prefixlen, network.network_address)):
            if not any(network.subnet_of(wider) for wider in standing):
                standing.append(network)
        ranges += [f"{network} . {port}" for network in sorted(standing)]
    return ranges, [f"{address} . {port}" for address, port in sorted(exceptions)]


def _elements(elements: list[str]) -> str:
    return f"\n        elements = {{ {_join(elements)} }}" if elements else ""


def _join(parts: Iterable[str]) -> str:
    return ", ".join(parts)
