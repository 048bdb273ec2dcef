"""What is tried from inside a guest, as data: the same attempts run from a namespace, from a VM's root shell and from a
container in it.

Each case has what the guest may see of it and what the ledger must say. What arrived outside is judged for all of them
at once: nothing but `MAY_ARRIVE`, whatever the guest saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from laboratory import world

# What the profile of `instances.ALLOW` lets out, by protocol, address and port, and the guard's own questions to the
# name server.
MAY_ARRIVE = {
    ("tcp", world.WEB, 80),
    ("tcp", world.WEB, 443),
    ("tcp", world.OTHER, 443),
    ("tcp", world.WILD, 443),
    ("tcp", world.GIT, 443),
    ("tcp", world.GIT, 22),
    ("tcp", world.DATABASE, 5432),
    ("udp", world.DNS, 53),
}
NOTHING = ("timeout", "refused", "reset", "closed", "error")


@dataclass(frozen=True)
class Attack:
    """`seen` are the outcomes that the guest may get; `answer` is what the answer must hold; `ledger` a line that must
    be there."""

    row: int
    what: str
    probe: dict[str, Any]
    seen: tuple[str, ...] = NOTHING
    answer: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"row{self.row}-{self.what}".replace(" ", "-")


def _tcp(address: str, port: int) -> dict[str, Any]:
    return {"kind": "tcp", "address": address, "port": port}


def _udp(address: str, port: int) -> dict[str, Any]:
    return {"kind": "udp", "address": address, "port": port}


def _drop(address: str, port: int, protocol: str = "tcp") -> dict[str, Any]:
    return {"kind": "drop", "verdict": "deny", "address": address, "port": port, "protocol": protocol}


def _tls(address: str, name: str | None) -> dict[str, Any]:
    return {"kind": "tls", "address": address, "port": 443, "name": name}


def _web(address: str, *lines: str, first: str = "GET / HTTP/1.1") -> dict[str, Any]:
    text = "\r\n".join([first, *lines, "Connection: close", "", ""])
    return {"kind": "http", "address": address, "port": 80, "send": text}


def _refused(
    row: int, what: str, probe: dict[str, Any], status: int | tuple[int, ...], ledger: dict[str, Any]
) -> Attack:
    return Attack(row, what, probe, ("answered",), {"status": status}, ledger)


def make_attacks(gateway: str, sibling: str = "10.213.255.2") -> list[Attack]:
    """Every attempt, for a guest with this gateway. `sibling` is another instance's guest."""
    denied_name = {"kind": "dns", "verdict": "deny", "rule": "name"}
    attacks = [
        Attack(1, "an address on 22", _tcp(world.EVIL, 22), ledger=_drop(world.EVIL, 22)),
        Attack(1, "an address on 443", _tls(world.EVIL, "evil.test.lab"), ledger={"kind": "tls", "verdict": "deny", "name": "evil.test.lab"}),
        Attack(1, "an address on 8443", _tcp(world.EVIL, 8443), ledger=_drop(world.EVIL, 8443)),
        Attack(2, "an allowed name on 22", _tcp(world.WEB, 22), ledger=_drop(world.WEB, 22)),
        Attack(2, "an allowed name on 8443", _tcp(world.WEB, 8443), ledger=_drop(world.WEB, 8443)),
        Attack(2, "an allowed range on 22", _tcp(world.DATABASE, 22), ledger=_drop(world.DATABASE, 22)),
        Attack(3, "a foreign name in TLS", _tls(world.WEB, "other.test.lab"), ledger={"kind": "tls", "verdict": "deny", "name": "other.test.lab", "address": world.WEB, "port": 443, "rule": "name"}),
        Attack(3, "no name in TLS", _tls(world.WEB, None), ledger={"kind": "tls", "verdict": "deny", "rule": "no-name", "address": world.WEB}),
        Attack(3, "no TLS at all", {**_tcp(world.WEB, 443), "send": "SSH-2.0-x\r\n", "limit": 8}, ("closed", "reset"), ledger={"kind": "tls", "verdict": "deny", "rule": "no-hello"}),
        Attack(1, "nothing said on 443", {**_tcp("203.0.113.68", 443), "limit": 8}, ("closed", "reset"), ledger={"kind": "tls", "verdict": "deny", "address": "203.0.113.68"}),
        Attack(1, "nothing said on 80", {**_tcp("203.0.113.68", 80), "limit": 14}, ("closed", "reset", "connected"), ledger={"kind": "http", "verdict": "deny", "address": "203.0.113.68"}),
        Attack(3, "a suffix without a dot", _tls(world.WILD, "evilwild.test.lab"), ledger={"kind": "tls", "verdict": "deny", "name": "evilwild.test.lab"}),
        Attack(3, "the suffix itself", _tls(world.WILD, "wild.test.lab"), ledger={"kind": "tls", "verdict": "deny", "name": "wild.test.lab"}),
        Attack(4, "an allowed name at a foreign address", _tls("203.0.113.67", "allowed.test.lab"), ("answered",), {"said": f"served by {world.WEB}:443"}, {"kind": "tls", "verdict": "allow", "name": "allowed.test.lab", "port": 443}),
        Attack(4, "an allowed Host at a foreign address", _web("203.0.113.67", "Host: allowed.test.lab"), ("answered",), {"said": f"served by {world.WEB}:80"}, {"kind": "http", "verdict": "allow", "name": "allowed.test.lab", "port": 80}),
        _refused(5, "a foreign Host", _web(world.WEB, "Host: other.test.lab"), 403, {"kind": "http", "verdict": "deny", "name": "other.test.lab", "port": 80, "rule": "name"}),
        # HAProxy itself refuses what contradicts itself with 400; of two equal ones it forwards one.
        _refused(5, "two Hosts, the good one first", _web(world.WEB, "Host: allowed.test.lab", "Host: evil.test.lab"), (400, 403), {"kind": "http", "verdict": "deny", "rule": "request"}),
        _refused(5, "two Hosts, the good one last", _web(world.WEB, "Host: evil.test.lab", "Host: allowed.test.lab"), (400, 403), {"kind": "http", "verdict": "deny", "rule": "request"}),
        _refused(5, "no Host", _web(world.WEB, first="GET / HTTP/1.0"), 403, {"kind": "http", "verdict": "deny", "rule": "request"}),
        _refused(5, "a whole URI with another name", _web(world.WEB, "Host: allowed.test.lab", first="GET http://evil.test.lab/ HTTP/1.1"), (400, 403), {"kind": "http", "verdict": "deny"}),
        _refused(5, "CONNECT", _web(world.WEB, "Host: allowed.test.lab", first="CONNECT evil.test.lab:443 HTTP/1.1"), (400, 403), {"kind": "http", "verdict": "deny"}),
        _refused(5, "a whole URI with the allowed name", _web(world.WEB, "Host: allowed.test.lab", first="GET http://allowed.test.lab/ HTTP/1.1"), 403, {"kind": "http", "verdict": "deny", "name": "allowed.test.lab", "rule": "request"}),
        _refused(5, "an upgrade", _web(world.WEB, "Host: allowed.test.lab", "Upgrade: websocket"), 403, {"kind": "http", "verdict": "deny", "name": "allowed.test.lab", "rule": "request"}),
        Attack(6, "QUIC", _udp(world.WEB, 443), ledger=_drop(world.WEB, 443, "udp")),
        Attack(6, "DNS over TLS", _tcp(world.EVIL, 853), ledger=_drop(world.EVIL, 853)),
        Attack(6, "DNS to the lab's own server", {"kind": "dns", "address": world.DNS, "name": "allowed.test.lab"}, ledger=_drop(world.DNS, 53, "udp")),
        Attack(6, "DNS to any server", {"kind": "dns", "address": world.EVIL, "name": "allowed.test.lab"}, ledger=_drop(world.EVIL, 53, "udp")),
        Attack(6, "DNS to any server over TCP", {"kind": "dns", "address": world.EVIL, "name": "allowed.test.lab", "over": "tcp"}, ledger=_drop(world.EVIL, 53)),
        Attack(6, "NTP", _udp(world.EVIL, 123), ledger=_drop(world.EVIL, 123, "udp")),
        Attack(7, "a name", {"kind": "dns", "address": gateway, "name": "evil.test.lab", "limit": 8}, ("answered",), {"rcode": 3, "answers": 0}, {**denied_name, "name": "evil.test.lab"}),
        Attack(7, "data in a name", {"kind": "dns", "address": gateway, "name": "c2VjcmV0.allowed.test.lab", "limit": 8}, ("answered",), {"rcode": 3, "answers": 0}, {**denied_name, "name": "c2vjcmv0.allowed.test.lab"}),
        Attack(7, "a TXT of an allowed name", {"kind": "dns", "address": gateway, "name": "allowed.test.lab", "type": 16, "limit": 8}, ("answered",), {"rcode": 0, "answers": 0}),
        Attack(9, "an alias's own name", {"kind": "dns", "address": gateway, "name": "target.test.lab", "limit": 8}, ("answered",), {"rcode": 3, "answers": 0}, {**denied_name, "name": "target.test.lab"}),
        Attack(9, "an alias's target in TLS", _tls(world.OTHER, "target.test.lab"), ledger={"kind": "tls", "verdict": "deny", "name": "target.test.lab"}),
    ]  # fmt: skip
    for name, address in (
        ("ten.test.lab", "10.0.0.1"),
        ("printer.test.lab", world.PRINTER),
        ("metadata.test.lab", world.METADATA),
        ("loopback.test.lab", "127.0.0.1"),
        ("zero.test.lab", "0.0.0.0"),
    ):
        ledger = {"kind": "dns", "verdict": "deny", "name": name, "address": address, "rule": "reserved"}
        question = {"kind": "dns", "address": gateway, "name": name, "limit": 8}
        attacks.append(Attack(8, f"{name}", question, ("answered",), {"rcode": 0, "answers": 0}, ledger))
        attacks.append(
            _refused(
                8,
                f"{name} over HTTP",
                _web(world.WEB, f"Host: {name}"),
                403,
                {"kind": "http", "verdict": "deny", "name": name},
            )
        )
        attacks.append(
            Attack(
                8, f"{name} over TLS", _tls(world.WEB, name), ledger={"kind": "tls", "verdict": "deny", "name": name}
            )
        )
    attacks.append(
        Attack(
            8,
            "a mapped IPv6 address",
            {"kind": "dns", "address": gateway, "name": "mapped.test.lab", "type": 28, "limit": 8},
            ("answered",),
            {"rcode": 0, "answers": 0},
        )
    )
    for address in (
        world.METADATA,
        world.PRINTER,
        world.HOST_ADDRESS,
        world.HOST_LAN_ADDRESS,
        gateway,
        sibling,
        "172.16.0.1",
        "100.64.0.1",
    ):
        for port in (22, 80, 443, world.HOST_SERVICE_PORT):
            attacks.append(
                Attack(10, f"{address} on {port}", _tcp(address, port), ("timeout",), ledger=_drop(address, port))
            )
    attacks.append(Attack(10, "the host's other ports by UDP", _udp(gateway, 111), ledger=_drop(gateway, 111, "udp")))
    attacks.append(Attack(10, "the proxy's own port", _tcp(gateway, 916), ("timeout",), ledger=_drop(gateway, 916)))
    attacks.append(Attack(10, "broadcast", _udp("255.255.255.255", 9), ("error", "timeout")))
    echo_request = "0800" + "f7ff" + "00000000"
    for number, word, payload in (
        (1, "icmp", echo_request),
        (47, "gre", "00000800" + "45" * 20),
        (132, "sctp", "0016001600000000" + "00" * 8),
    ):
        for address in (world.WEB, world.EVIL, gateway):
            probe = {"kind": "raw_ip", "address": address, "protocol": number, "payload": payload}
            seen = ("sent",) if number != 1 else ("timeout",)
            attacks.append(
                Attack(
                    13, f"{word} to {address}", probe, seen, ledger={**_drop(address, 0, word), "rule": "destination"}
                )
            )
    return attacks


def make_requests(gateway: str) -> list[Attack]:
    """What the profile allows, and must work."""

    def question(name: str, address: str) -> Attack:
        return Attack(
            0,
            f"look up {name}",
            {"kind": "dns", "address": gateway, "name": name, "limit": 8},
            ("answered",),
            {"addresses": [address]},
        )

    return [
        question("allowed.test.lab", world.WEB),
        question("alias.test.lab", world.OTHER),
        question("git.test.lab", world.GIT),
        question("one.wild.test.lab", world.WILD),
        question("mixed.test.lab", world.WEB),
        question("six.test.lab", world.WEB),
        Attack(0, "https", _tls(world.WEB, "allowed.test.lab"), ("answered",), {"said": f"served by {world.WEB}:443"}, {"kind": "tls", "verdict": "allow", "name": "allowed.test.lab", "port": 443, "rule": "name"}),
        Attack(0, "an alias by its allowed name", _tls(world.OTHER, "alias.test.lab"), ("answered",), {"said": f"served by {world.OTHER}:443"}, {"kind": "tls", "verdict": "allow", "name": "alias.test.lab"}),
        Attack(0, "a name below a suffix", _tls(world.WILD, "one.wild.test.lab"), ("answered",), {"said": f"served by {world.WILD}:443"}, {"kind": "tls", "verdict": "allow", "name": "one.wild.test.lab"}),
        Attack(0, "http", _web(world.WEB, "Host: allowed.test.lab"), ("answered",), {"status": 200}, {"kind": "http", "verdict": "allow", "name": "allowed.test.lab", "port": 80, "status": 200}),
        Attack(0, "a range", _tcp(world.DATABASE, 5432), ("connected",), {"said": f"echo {world.DATABASE}:5432"}, {"kind": "tcp", "verdict": "allow", "address": world.DATABASE, "port": 5432}),
    ]  # fmt: skip


def judge(attack: Attack, answer: dict[str, Any]) -> str:
    """What is wrong with what the guest saw, or nothing."""
    if answer["outcome"] not in attack.seen:
        return f"the guest saw {answer}, not one of {attack.seen}"
    for key, wanted in attack.answer.items():
        found = answer.get(key)
        if isinstance(wanted, str) and isinstance(found, str):
            right = wanted in found
        else:
            right = found in wanted if isinstance(wanted, tuple) else found == wanted
        if not right:
            return f"{key} is {found!r}, not {wanted!r}"
    return ""
