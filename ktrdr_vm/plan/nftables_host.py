"""The nftables table of an instance on the host: what the users of its proxy, its resolver and its sender of telemetry
may reach."""

from __future__ import annotations

from ipaddress import IPv4Address

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Allocation
from ktrdr_vm.plan.guard_interface import DNS_PORT
from ktrdr_vm.plan.nftables import find_elements, render_closed_sets, render_exceptions, render_table
from ktrdr_vm.plan.telemetry import render_sender
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule


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
    _, exceptions = find_elements(rules, frozenset(reserved))
    sections = (
        render_closed_sets(),
        render_exceptions(exceptions),
        _render_resolver(allocation),
        _render_proxy(allocation),
        render_sender(collector, allocation.sender_uid),
    )
    return render_table(identity, home, sections)


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
