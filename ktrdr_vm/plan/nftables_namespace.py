"""The nftables table in the network namespace of an instance: what the guest may reach.

Order in `guest_in`: sender (anti-spoof) → services of the gateway (DNS) → exceptions of the owner's policy → reserved
ranges and the host itself → 80 and 443, which the proxy checks by name → the allow sets → drop, counted by destination.
No `ct state established accept` precedes these rules, so a connection ends with the element that allowed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

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
from ktrdr_vm.plan.nftables import (
    find_elements,
    join,
    render_closed_sets,
    render_elements,
    render_exceptions,
    render_table,
)
from ktrdr_vm.profile.egress_rule import EgressRule

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
    ranges, exceptions = find_elements(rules, frozenset(reserved))
    sections = (
        render_closed_sets(),
        render_exceptions(exceptions),
        _render_ranges(ranges),
        _render_opened_sets(),
        _render_counts(),
        _render_guest_in(on),
        _render_flows(on),
        _render_redirects(on),
        _render_listeners(on),
    )
    return render_table(identity, home, sections)


def _render_ranges(ranges: list[str]) -> str:
    return f"""\
    # Address ranges that the profile names, while the instance exists.
    set ranges {{
        type ipv4_addr . inet_service
        flags interval{render_elements(ranges)}
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
        ip daddr {on.gateway} tcp dport {{ {join(map(str, on.served))} }} accept
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
