"""The world around the lab host: an internet, a LAN with a printer and a metadata service, and nothing else. There is
no way out of it.

lab host (the test process's own namespace; ip_forward is on, the hardest case)
  ├─ uplink 198.51.100.254 ── internet: every address that is nobody else's answers there
  └─ lan0   192.168.77.1   ── lan: printer .9, second host .20, metadata 169.254.169.254
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from laboratory import namespaces, servers
from laboratory.namespaces import inside, ip, make_namespace
from laboratory.recorder import Hit, Recorder, start_sniffer

HOST_ADDRESS = "198.51.100.254"
HOST_LAN_ADDRESS = "192.168.77.1"
DNS = "198.51.100.53"
WEB = "198.51.100.10"
OTHER = "198.51.100.11"
WILD = "198.51.100.12"
GIT = "198.51.100.22"
DATABASE = "198.51.100.7"
EVIL = "203.0.113.66"
PRINTER = "192.168.77.9"
METADATA = "169.254.169.254"
INTERNET_V6, HOST_V6 = "2001:db8::1", "2001:db8::254"
# A service of the lab host itself, on every one of its addresses: what a guest must not find.
HOST_SERVICE_PORT = 2222

ZONE = {
    "allowed.test.lab": [("A", WEB)],
    "api.test.lab": [("A", OTHER)],
    "other.test.lab": [("A", OTHER)],
    "evil.test.lab": [("A", EVIL)],
    "git.test.lab": [("A", GIT)],
    "wild.test.lab": [("A", WILD)],
    "one.wild.test.lab": [("A", WILD)],
    "alias.test.lab": [("CNAME", "target.test.lab.")],
    "target.test.lab": [("A", OTHER)],
    "ten.test.lab": [("A", "10.0.0.1")],
    "printer.test.lab": [("A", PRINTER)],
    "metadata.test.lab": [("A", METADATA)],
    "loopback.test.lab": [("A", "127.0.0.1")],
    "zero.test.lab": [("A", "0.0.0.0")],
    "mapped.test.lab": [("AAAA", f"::ffff:{PRINTER}")],
    "mixed.test.lab": [("A", "10.0.0.1"), ("A", WEB)],
    "six.test.lab": [("AAAA", INTERNET_V6), ("A", WEB)],
}
NAMES = [*ZONE, "*.wild.test.lab"]


class World:
    """Built once a session, in the namespaces that the process already entered."""

    def __init__(self) -> None:
        namespaces.require_own_namespace()
        self.recorder = Recorder()
        self.authority = servers.Authority(NAMES)
        self._make_networks()
        self._start_internet()
        self._start_lan()
        self._start_host_service()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

    def _make_networks(self) -> None:
        for name, link, host, there in (
            ("internet", "uplink", HOST_ADDRESS, "198.51.100.1"),
            ("lan", "lan0", HOST_LAN_ADDRESS, "192.168.77.254"),
        ):
            make_namespace(name)
            ip(f"link add {link} type veth peer name out netns {name}")
            ip(f"addr add {host}/24 dev {link}")
            ip(f"link set {link} up")
            ip(f"addr add {there}/24 dev out", name)
            ip("link set out up", name)
            ip(f"route add default via {host}", name)
        ip(f"addr add {HOST_V6}/64 dev uplink nodad")
        ip(f"addr add {INTERNET_V6}/64 dev out nodad", "internet")
        ip(f"-6 route add default via {HOST_V6}", "internet")
        ip("route add default via 198.51.100.1")
        ip(f"-6 route add default via {INTERNET_V6}")
        for address in (DNS, WEB, OTHER, WILD, GIT, DATABASE):
            ip(f"addr add {address}/24 dev out", "internet")
        # Whatever other address is dialled out there, somebody takes the call: local is everything but the way back.
        ip("route add 198.51.100.0/24 dev out table local", "internet")
        ip(f"route add 10.213.0.0/16 via {HOST_ADDRESS} table local", "internet")
        ip("route add local default dev lo table local", "internet")
        ip("-6 route add local default dev lo table 100", "internet")
        ip("-6 rule add priority 32765 table 100 iif out", "internet")
        for address in (PRINTER, "192.168.77.20"):
            ip(f"addr add {address}/24 dev out", "lan")
        ip(f"addr add {METADATA}/32 dev out", "lan")
        ip(f"route add {METADATA}/32 dev lan0")

    def _start_internet(self) -> None:
        with inside("internet"):
            start_sniffer("internet", "out", self.recorder)
            self.dns = servers.Dns(DNS, self.recorder)
            self.reset_zone()
            servers.start_web("0.0.0.0", 80, self.recorder)
            servers.start_web("0.0.0.0", 443, self.recorder, self.authority)
            for port in (22, 53, 853, 5432, 8443, 9100):
                servers.start_echo("0.0.0.0" if port != 53 else EVIL, port, self.recorder)
            servers.start_echo(INTERNET_V6, 22, self.recorder)
            for port in (53, 123, 443, 853, 9999):
                servers.start_udp(EVIL, port, self.recorder)

    def _start_lan(self) -> None:
        with inside("lan"):
            start_sniffer("lan", "out", self.recorder)
            servers.start_web("0.0.0.0", 80, self.recorder)
            servers.start_web("0.0.0.0", 443, self.recorder, self.authority)
            for port in (22, 9100):
                servers.start_echo("0.0.0.0", port, self.recorder)

    def _start_host_service(self) -> None:
        listener = socket.create_server(("::", HOST_SERVICE_PORT), family=socket.AF_INET6, dualstack_ipv6=True)

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                address = connection.getsockname()[0].removeprefix("::ffff:")
                self.recorder.hit(Hit("host", address, HOST_SERVICE_PORT))
                connection.sendall(b"the host\n")
                connection.close()

        threading.Thread(target=serve, daemon=True).start()

    def reset_zone(self) -> None:
        self.dns.zone = {name: list(records) for name, records in ZONE.items()}
        self.dns.ttl = 60
