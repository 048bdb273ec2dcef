"""The host's own networks and addresses, as the kernel lists its routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.host.on_link import find_on_link

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def route(device: str, network: str, *, gateway: str = "00000000", flags: str = "0001", length: int = 24) -> str:
    target = "".join(f"{int(part):02X}" for part in reversed(network.split(".")))
    mask = "".join(f"{part:02X}" for part in ((0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF).to_bytes(4, "little"))
    return f"{device}\t{target}\t{gateway}\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("line", "networks"),
    [
        (route("eth0", "11.77.0.0"), ["11.77.0.0/24"]),
        (route("eth0", "192.168.7.0"), ["192.168.7.0/24"]),
        (route("eth0", "11.77.0.9", length=32), ["11.77.0.9/32"]),
        (route("eth0", "11.0.0.0", length=8), ["11.0.0.0/8"]),
        (route("eth0", "11.77.0.0") + route("eth1", "11.77.1.0"), ["11.77.0.0/23"]),
        (route("eth0", "11.77.0.0") + route("eth1", "11.77.0.0", length=25), ["11.77.0.0/24"]),
        # Through a gateway, refused, not up, a tunnel's default and its halves, the host itself, a lab's internet.
        (route("eth0", "11.77.0.0", gateway="0100A8C0", flags="0003"), []),
        (route("eth0", "11.77.0.0", flags="0201"), []),
        (route("eth0", "11.77.0.0", flags="0000"), []),
        (route("ppp0", "0.0.0.0", length=0), []),
        (route("tun0", "128.0.0.0", length=1), []),
        (route("lo", "11.77.0.0"), []),
        (route("eth0", "203.0.113.0"), []),
    ],
)
def test_networks_without_a_gateway(tmp_path: Path, line: str, networks: list[str]) -> None:
    routes = tmp_path / "route"
    routes.write_text(HEAD + line)
    (tmp_path / "fib_trie").write_text("")
    assert [str(one) for one in find_on_link([tmp_path])] == networks


LOCAL = """\
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     |-- 11.77.0.7
        /32 host LOCAL
     |-- 11.77.0.255
        /32 link BROADCAST
     |-- 192.0.2.2
        /24 link UNICAST
        /32 host LOCAL
"""


def test_addresses_of_the_host(tmp_path: Path) -> None:
    """Also one that no network of an interface holds, as of a tunnel, and one of a documentation range."""
    (tmp_path / "route").write_text(HEAD + route("eth0", "11.78.0.0"))
    (tmp_path / "fib_trie").write_text(LOCAL)
    assert [str(one) for one in find_on_link([tmp_path])] == ["11.77.0.7/32", "11.78.0.0/24", "192.0.2.2/32"]


def test_a_kernel_without_routes(tmp_path: Path) -> None:
    assert find_on_link([tmp_path / "none"]) == ()
