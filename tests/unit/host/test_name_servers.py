"""resolv.conf as the libc of the host reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.host import name_servers
from ktrdr_vm.host.name_servers import (
    find_host_addresses,
    find_upstreams,
    parse_hosts,
    parse_name_servers,
    parse_search_domains,
    parse_use_tcp,
)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("nameserver\t192.0.2.1  \r\nnameserver 192.0.2.2", ["192.0.2.1", "192.0.2.2"]),
        ("nameserver 192.0.2.1# the router\nnameserver 192.0.2.2;x\n", ["192.0.2.1", "192.0.2.2"]),
        ("nameserver 192.0.2.1 # the router\nnameserver   2001:db8::1\n", ["192.0.2.1", "2001:db8::1"]),
        ("nameserver fe80::1%eth0\n", ["fe80::1%eth0"]),
        ("".join(f"nameserver 192.0.2.{number}\n" for number in range(1, 6)), [f"192.0.2.{n}" for n in (1, 2, 3)]),
        # What glibc ignores.
        (" nameserver 192.0.2.9\n#nameserver 192.0.2.8\n; nameserver 192.0.2.7\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("nameserver router.lan\nnameserver\nnameservers 192.0.2.9\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("NAMESERVER 192.0.2.9\noptions rotate timeout:1 attempts:5 ndots:2\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        # Without a name server that of the host itself is asked.
        ("", ["127.0.0.1"]),
        ("search example.com\noptions edns0\n", ["127.0.0.1"]),
        ("nameserver 0.0.0.0\nnameserver ::\n", ["127.0.0.1", "::1"]),
    ],
)
def test_name_servers(text: str, servers: list[str]) -> None:
    assert [str(one) for one in parse_name_servers(text)] == servers


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        ("", ["corp.example"]),
        ("search A.example. b.example\n", ["a.example", "b.example"]),
        ("domain a.example ignored\n", ["a.example"]),
        ("search a.example\ndomain b.example\n", ["b.example"]),
        ("domain b.example\nsearch\tc.example  # comment\n", ["c.example"]),
        ("search .\n", []),
        ("search ../x a..b $(id) lan\n", ["lan"]),
        ("search a.example\noptions use-vc\n", ["a.example"]),
    ],
)
def test_search_domains(text: str, domains: list[str]) -> None:
    assert parse_search_domains(text, "box.corp.example") == domains


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("options use-vc\n", True),
        ("options rotate\nnameserver 192.0.2.1\noptions\ttimeout:1  use-vc edns0\n", True),
        ("options use-vcs no-use-vc\n#options use-vc\n options use-vc\n", False),
        ("", False),
    ],
)
def test_a_host_can_reach_its_name_servers_over_tcp_only(text: str, expected: bool) -> None:
    assert parse_use_tcp(text) is expected


def test_without_a_file_the_host_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_servers, "RESOLV_CONF", tmp_path / "resolv.conf")
    monkeypatch.setattr(name_servers, "in_user_namespace", lambda: False)
    assert find_upstreams() == ["127.0.0.1"]


def test_in_a_world_loopback_is_forwarded_and_a_link_of_the_host_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\n")
    monkeypatch.setattr(name_servers, "RESOLV_CONF", tmp_path / "resolv.conf")
    monkeypatch.setattr(name_servers, "in_user_namespace", lambda: True)
    assert find_upstreams() == [name_servers.FORWARDED, "192.0.2.1"]


HOSTS = """\
127.0.0.1 localhost
198.51.100.1\tmirror.corp.example mirror # the mirror
 198.51.100.2 Mirror.Corp.Example
198.51.100.2 mirror.corp.example
2001:db8::1 mirror.corp.example
198.51.100.300 mirror.corp.example
#198.51.100.4 mirror.corp.example
198.51.100.5
"""


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("mirror.corp.example", ["198.51.100.1", "198.51.100.2"]),
        ("mirror", ["198.51.100.1"]),
        ("corp.example", []),
        ("198.51.100.5", []),
    ],
)
def test_names_of_etc_hosts(name: str, addresses: list[str]) -> None:
    assert parse_hosts(HOSTS, name) == addresses


def test_of_etc_hosts_the_first_mebibyte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that the bound cuts would give its address to a name that is not in it."""
    monkeypatch.setattr(name_servers, "HOSTS", tmp_path / "hosts")
    head = b"198.51.100.1 first.example\n"
    cut = b"198.51.100.2 api.example.com"
    filling = b"#" * ((1 << 20) - len(head) - len(cut) - 1) + b"\n"
    (tmp_path / "hosts").write_bytes(head + filling + cut + b"munity\n198.51.100.3 behind.example\n")
    found = {name: find_host_addresses(name) for name in ("first.example", "api.example.com", "behind.example")}
    assert found == {"first.example": ["198.51.100.1"], "api.example.com": [], "behind.example": []}
    (tmp_path / "hosts").write_bytes(cut)
    assert find_host_addresses("api.example.com") == ["198.51.100.2"], "without a line break at its end"
    monkeypatch.setattr(name_servers, "HOSTS", tmp_path / "none")
    assert find_host_addresses("first.example") == []
