"""The UDP sockets of this host that wait for datagrams, of every process, as the kernel lists them."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_SOCKETS = Path("/proc/net/udp")


def find_bound(port: int, sockets: Path = _SOCKETS) -> set[str]:
    """The IPv4 addresses on which a process waits for datagrams to `port`."""
    try:
        rows = [line.split()[1].split(":") for line in sockets.read_text().splitlines()[1:]]
    except FileNotFoundError:
        # A kernel without IPv4.
        return set()
    return {
        socket.inet_ntoa(struct.pack("=L", int(address, 16))) for address, number in rows if int(number, 16) == port
    }
