"""What arrived in the world outside: packets on its wires, and requests at its servers. Tests assert on this and not on
the guest's word."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

ETH_P_ALL = 3
_OUTGOING = 4
# Neighbour discovery and multicast reports are the lab host's own; they carry nothing of a guest.
_ICMP6_HOUSEKEEPING = {130, 131, 132, 133, 134, 135, 136, 143}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmp6", 132: "sctp"}


@dataclass(frozen=True)
class Packet:
    """One packet that reached a network: protocol, source, destination, port (0 where there is none)."""

    network: str
    protocol: str
    source: str
    address: str
    port: int


@dataclass(frozen=True)
class Hit:
    """One request at a server: the address that was dialled, and the name that was asked for."""

    server: str
    address: str
    port: int
    name: str = ""


class Recorder:
    """Everything that arrived, in order. `mark` remembers a moment, and the others look at what came after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packets: list[Packet] = []
        self._hits: list[Hit] = []
        self.wires: list[socket.socket] = []
        # Held while a packet is on its way from its wire into the list.
        self.reading = threading.Lock()

    def settle(self, limit: float = 2.0) -> None:
        """Wait until the sniffers have read what lies on their wires: a busy machine lets them run late. A flood is not
        waited out."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            with self.reading:
                if not select.select(self.wires, [], [], 0)[0]:
                    return
            time.sleep(0.005)

    def packet(self, packet: Packet) -> None:
        with self._lock:
            self._packets.append(packet)

    def hit(self, hit: Hit) -> None:
        with self._lock:
            self._hits.append(hit)

    def mark(self) -> tuple[int, int]:
        self.settle()
        with self._lock:
            return len(self._packets), len(self._hits)

    def packets(self, since: tuple[int, int] = (0, 0)) -> list[Packet]:
        self.settle()
        with self._lock:
            return self._packets[since[0] :]

    def hits(self, since: tuple[int, int] = (0, 0), server: str = "") -> list[Hit]:
        with self._lock:
            return [hit for hit in self._hits[since[1] :] if server in ("", hit.server)]

    def endpoints(self, since: tuple[int, int] = (0, 0)) -> set[tuple[str, str, int]]:
        """Protocol, address and port of every packet that arrived."""
        return {(packet.protocol, packet.address, packet.port) for packet in self.packets(since)}


def wait_until(condition: Callable[[], object], what: str, limit: float = 10.0) -> None:
    """Poll until the condition holds; an assertion with `what` when it does not in time."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.02)


def start_sniffer(network: str, interface: str, recorder: Recorder) -> None:
    """Read every packet that comes in on an interface of the current namespace, for as long as the process lives."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    tap.bind((interface, ETH_P_ALL))
    recorder.wires.append(tap)

    def read() -> None:
        while True:
            select.select([tap], [], [])
            with recorder.reading:
                data, origin = tap.recvfrom(65536)
                packet = parse_packet(network, data) if origin[2] != _OUTGOING else None
                if packet is not None:
                    recorder.packet(packet)

    threading.Thread(target=read, daemon=True, name=f"sniffer-{network}").start()


def parse_packet(network: str, data: bytes) -> Packet | None:
    """An IP packet, or None for what is none, such as ARP."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        protocol, rest = data[9], data[(data[0] & 15) * 4 :]
        source, address = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    elif len(data) >= 40 and data[0] >> 4 == 6:
        protocol, rest = data[6], data[40:]
        if protocol == 0 and len(rest) > 8:
            protocol, rest = rest[0], rest[8:]
        if protocol == 58 and rest and rest[0] in _ICMP6_HOUSEKEEPING:
            return None
        source, address = (socket.inet_ntop(socket.AF_INET6, part) for part in (data[8:24], data[24:40]))
    else:
        return None
    port = struct.unpack("!H", rest[2:4])[0] if protocol in (6, 17, 132) and len(rest) >= 4 else 0
    return Packet(network, _PROTOCOLS.get(protocol, str(protocol)), source, address, port)
