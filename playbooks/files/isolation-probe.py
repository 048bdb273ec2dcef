#!/usr/bin/env python3
"""Tests that destinations which must be closed cannot be reached. isolation.yaml runs it in the guest, and again in a
container.

Every probe is one packet or one connection with a short limit; all run at once. A destination is `closed` if there was
no answer, and `OPEN` otherwise. A refused connection counts as open, because the refusal is sent by the destination.
"""

import argparse
import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Answers come from the same host, within milliseconds; a dropped packet gets none.
LIMIT = 2.0
DNS_TRIES = 4


def find_gateway() -> str:
    """The default route's next hop: the host, as this guest sees it."""
    with open("/proc/net/route") as table:
        for line in table:
            fields = line.split()
            if fields[1] == "00000000" and int(fields[3], 16) & 2:
                return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])
    raise SystemExit("there is no default route, so the gateway is unknown")


def find_resolver() -> str:
    with open("/etc/resolv.conf") as lines:
        found = re.findall(r"^nameserver\s+(\S+)", lines.read(), re.MULTILINE)
    return found[0] if found else find_gateway()


def connect(address: str, port: int) -> str:
    """The reason why the connection counts as open, or an empty text."""
    try:
        with socket.create_connection((address, port), LIMIT):
            return "it accepts connections"
    except ConnectionRefusedError:
        return "the connection was refused by the destination"
    except OSError:
        return ""


def say(address: str, port: int, words: bytes, refusal: bytes = b"") -> str:
    """Connect and send `words`. Open if there is an answer other than the `refusal` of the guard."""
    answer = b""
    try:
        with socket.create_connection((address, port), LIMIT) as connection:
            connection.settimeout(LIMIT)
            connection.sendall(words)
            while len(answer) < 8192 and (piece := connection.recv(4096)):
                answer += piece
    except ConnectionRefusedError:
        return "the connection was refused by the destination"
    except OSError:
        # The connection was cut; an earlier answer counts.
        pass
    return f"it answered {answer[:60]!r}" if answer and not (refusal and refusal in answer) else ""


def client_hello(name: str) -> bytes:
    """The first bytes of TLS, with `name` as SNI, or without one."""
    context = ssl.create_default_context()
    context.check_hostname = bool(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name or None).do_handshake()
    return outgoing.read()


def ask_dns(server: str, name: str) -> "tuple[int, int] | None":
    """(rcode, number of answers) of the response over UDP, or None."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    query = os.urandom(2) + b"\x01\x00" + b"\0\1" + bytes(6) + labels + b"\0" + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(LIMIT)
        try:
            datagrams.connect((server, 53))
            datagrams.send(query)
            answer = datagrams.recv(4096)
        except OSError:
            return None
    return (answer[3] & 15, int.from_bytes(answer[6:8], "big")) if answer[:2] == query[:2] else (-1, 0)


def foreign_dns(server: str, name: str) -> str:
    return "" if ask_dns(server, name) is None else "it answered"


def unknown_name(name: str) -> str:
    """The resolver of the guest must answer that the name does not exist; a missing answer proves nothing."""
    server = find_resolver()
    for _ in range(DNS_TRIES):
        answer = ask_dns(server, name)
        if answer is not None:
            return (
                ""
                if answer == (3, 0)
                else f"the resolver {server} answered with rcode {answer[0]} and {answer[1]} records"
            )
    return f"the resolver {server} did not answer, so the result is unknown"


def connect_ipv6(address: str, port: int) -> str:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as connection:
            connection.settimeout(LIMIT)
            connection.connect((address, port))
            return "it accepts connections"
    except ConnectionRefusedError:
        return "the connection was refused by the destination"
    except OSError:
        return ""


def split(endpoint: str) -> "tuple[str, int]":
    address, _, port = endpoint.rpartition(":")
    return address, int(port)


def words(text: str) -> "list[str]":
    return text.replace(",", " ").split()


def run_in_container(image: str) -> int:
    """Run this file in a privileged container in the network of the guest."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--container=")]
    command = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--network",
        "host",
        "--privileged",
        image,
        "python3",
        "-",
        *arguments,
    ]
    with open(__file__, "rb") as source:
        return subprocess.run(command, stdin=source, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("tcp", "host-ports", "dns", "name", "address", "ipv6", "container"):
        parser.add_argument(f"--{name}", default="")
    given = parser.parse_args()
    if given.container:
        return run_in_container(given.container)
    gateway = find_gateway()
    http = f"GET / HTTP/1.1\r\nHost: {given.name}\r\nConnection: close\r\n\r\n".encode()
    probes = [(f"tcp {endpoint}", connect, *split(endpoint)) for endpoint in words(given.tcp)]
    probes += [
        (f"the host itself, tcp {gateway}:{port}", connect, gateway, int(port)) for port in words(given.host_ports)
    ]
    for server in words(given.dns):
        probes += [
            (f"foreign DNS, udp {server}:53", foreign_dns, server, given.name),
            (f"foreign DNS, tcp {server}:53", connect, server, 53),
        ]
    probes.append((f"name {given.name}", unknown_name, given.name))
    for address in words(given.address):
        # The guard accepts connections to 80 and 443 and then checks the name: there must be no answer.
        probes += [
            (f"tls {address}:443 for {given.name}", say, address, 443, client_hello(given.name)),
            (f"tls {address}:443 without a name", say, address, 443, client_hello("")),
            (f"http {address}:80 for {given.name}", say, address, 80, http, b"ktrdr-vm: "),
            (f"tcp {address}:22", connect, address, 22),
        ]
    probes += [(f"IPv6 tcp [{address}]:443", connect_ipv6, address, 443) for address in words(given.ipv6)]
    with ThreadPoolExecutor(len(probes)) as pool:
        found = list(pool.map(lambda probe: probe[1](*probe[2:]), probes))
    for (title, *_), reason in zip(probes, found, strict=True):
        print(f"OPEN    {title}: {reason}" if reason else f"closed  {title}")
    opened = [title for (title, *_), reason in zip(probes, found, strict=True) if reason]
    if opened:
        print("not closed: " + "; ".join(opened), file=sys.stderr)
    return 1 if opened else 0


if __name__ == "__main__":
    sys.exit(main())
