"""The addresses of this host and the networks of its interfaces, whose other hosts are neighbours, whatever their
address."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path

_NETWORK = Path("/proc/net")
# In a world, the network of the host, to which its packets go.
_OUTSIDE = Path("/run/ktrdr-vm/outside/net")
_UP, _GATEWAY, _REJECT = 0x1, 0x2, 0x200
# A larger route without a gateway is that of a tunnel or modem: it leads to the internet and not to neighbours.
_WIDEST = 8
# Documentation ranges are not used in LANs, and test labs use them as internet.
_DOCUMENTATION = tuple(IPv4Network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))


def find_on_link(networks: Iterable[Path] = (_NETWORK, _OUTSIDE)) -> tuple[IPv4Network, ...]:
    """The IPv4 networks of the main routing table that are reached without a gateway, and the addresses of the host;
    sorted."""
    found: list[IPv4Network] = []
    for network in networks:
        # A kernel without IPv4 routes has no IPv4 neighbours.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found += _parse((network / "route").read_text().splitlines()[1:])
            found += _parse_local((network / "fib_trie").read_text().splitlines())
    return tuple(sorted(collapse_addresses(found)))


def _parse_local(lines: list[str]) -> Iterable[IPv4Network]:
    """The addresses of the host in the kernel's trie of routes: a line with an address, then lines with
    its type."""
    address = ""
    for line in lines:
        if "|-- " in line:
            address = line.split()[-1]
        elif line.endswith("/32 host LOCAL") and not IPv4Address(address).is_loopback:
            yield IPv4Network(address)


def _parse(lines: Iterable[str]) -> Iterable[IPv4Network]:
    for line in lines:
        device, target, _, flags, _, _, _, mask = line.split()[:8]
        if device == "lo" or int(flags, 16) & (_UP | _GATEWAY | _REJECT) != _UP:
            continue
        network = IPv4Network((_read_address(target), bin(int(mask, 16)).count("1")), strict=False)
        if network.prefixlen >= _WIDEST and not any(network.subnet_of(one) for one in _DOCUMENTATION):
            yield network


def _read_address(text: str) -> str:
    """Convert an address, which the kernel prints as a number in the byte order of the host."""
    return socket.inet_ntoa(struct.pack("=L", int(text, 16)))
