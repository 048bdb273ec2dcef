"""The networks that this host is in itself: whoever is there is a neighbour, whatever the address."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses
from pathlib import Path

_ROUTES = Path("/proc/net/route")
_TAP = "kv"
_UP, _GATEWAY, _REJECT = 0x1, 0x2, 0x200
# A route without a gateway and wider than this is a tunnel's or a modem's: it leads to the internet and to no neighbour.
_WIDEST = 8
# They are nobody's LAN, and labs play the internet with them.
_DOCUMENTATION = tuple(IPv4Network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))


def find_on_link(routes: Path = _ROUTES) -> tuple[IPv4Network, ...]:
    """The IPv4 networks of the main routing table that are reached without a gateway, without those of instances; sorted."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except FileNotFoundError:
        # A kernel without IPv4 routes has no neighbours either.
        return ()
    return tuple(sorted(collapse_addresses(_parse(lines))))


def _parse(lines: Iterable[str]) -> Iterable[IPv4Network]:
    for line in lines:
        device, target, _, flags, _, _, _, mask = line.split()[:8]
        if device.startswith(_TAP) or device == "lo" or int(flags, 16) & (_UP | _GATEWAY | _REJECT) != _UP:
            continue
        network = IPv4Network((_read_address(target), bin(int(mask, 16)).count("1")), strict=False)
        if network.prefixlen >= _WIDEST and not any(network.subnet_of(one) for one in _DOCUMENTATION):
            yield network


def _read_address(text: str) -> str:
    """The kernel prints the address as a number in this host's byte order."""
    return socket.inet_ntoa(struct.pack("=L", int(text, 16)))
