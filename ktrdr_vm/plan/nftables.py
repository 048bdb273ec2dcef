"""The common parts of the two nftables tables of an instance: their frame, their closed sets, and the exceptions to
these. Both tables have the name of the instance.

In its network namespace (nftables_namespace.py) each packet of the guest is checked by its original address. There is
no other interface to forward it to. On the host (nftables_host.py), where the proxy and the resolver connect on its
behalf, each packet of their users is checked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.guard_interface import ALLOWED_SIZE
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.reserved import RESERVED, is_reserved


def render_table(identity: Identity, home: str, sections: Iterable[str]) -> str:
    return f"""\
add table inet {identity.table}
delete table inet {identity.table}
table inet {identity.table} {{
    comment "{identity.mark(home)}"

{"".join(sections)}}}
"""


def render_closed_sets() -> str:
    """Destinations that only an exception opens, in both tables."""
    return f"""\
    set reserved {{
        type ipv4_addr
        flags interval
        elements = {{ {join(map(str, RESERVED))} }}
    }}

    # The addresses of the host and the networks of its interfaces, kept by the guard: a neighbour counts as LAN even if its address is
    # public.
    set on_link {{
        type ipv4_addr
        flags interval, timeout
    }}

"""


def render_exceptions(exceptions: list[str]) -> str:
    """Exceptions to the closed sets, in both tables."""
    return f"""\
    # Addresses of the owner's policy that the profile names: the only exceptions to the reserved ranges.
    set exceptions {{
        type ipv4_addr . inet_service{render_elements(exceptions)}
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


def find_elements(
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


def render_elements(elements: list[str]) -> str:
    return f"\n        elements = {{ {join(elements)} }}" if elements else ""


def join(parts: Iterable[str]) -> str:
    return ", ".join(parts)
