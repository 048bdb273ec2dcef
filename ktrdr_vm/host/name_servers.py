"""The name servers and search domains of the host, from its resolv.conf, and the names of its /etc/hosts, as glibc
reads them.

The files are read repeatedly, because the host may change networks.
"""

from __future__ import annotations

import contextlib
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ktrdr_vm.users import in_user_namespace

RESOLV_CONF = Path("/etc/resolv.conf")
HOSTS = Path("/etc/hosts")
# Lists that block names by the million are of tens of MB; each query reads the file.
_MAX_HOSTS = 1 << 20
# In a world, pasta forwards queries to this address to the first name server, which may listen on the host's own
# loopback.
FORWARDED = "169.254.213.53"
# As in glibc: further ones are ignored.
MOST = 3
# Limit of this program: each domain is one more query for a name without a dot.
MOST_DOMAINS = 6
# Without a `nameserver` line, glibc uses a name server of the host itself. It takes 0.0.0.0 and :: for it as well.
_OWN = {4: "127.0.0.1", 6: "::1"}
_LINE = re.compile(r"(nameserver|search|domain|options)[ \t]+(.*)")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def find_upstreams() -> list[str]:
    """Addresses in the order of use; that of the host itself if resolv.conf does not exist or names none.

    An IPv6 address can have a scope, such as `%eth0`.
    """
    in_world = in_user_namespace()
    found = []
    for address in parse_name_servers(_read()):
        if isinstance(address, IPv6Address) and address.scope_id and in_world:
            continue  # the link of the host is not in the namespace of a world
        found.append(FORWARDED if address.is_loopback and in_world else str(address))
    return found


def find_search_domains() -> list[str]:
    """The domains in which the host searches a name without a dot."""
    return parse_search_domains(_read(), socket.gethostname())


def asks_over_tcp() -> bool:
    """True if `options use-vc` says that the host reaches its name servers over TCP only."""
    return parse_use_tcp(_read())


def find_host_addresses(name: str) -> list[str]:
    """The IPv4 addresses of a name in /etc/hosts, which glibc asks before any name server. Empty if it has none."""
    try:
        with HOSTS.open("rb") as file:
            read = file.read(_MAX_HOSTS)
            # A name that is cut at the bound could be another one.
            whole = read if len(read) < _MAX_HOSTS else read[: read.rfind(b"\n") + 1]
            return parse_hosts(whole.decode("utf-8", "replace"), name)
    except OSError:
        return []


def parse_hosts(text: str, name: str) -> list[str]:
    """The IPv4 addresses of `name`, in the order of the lines. Lines that glibc does not understand are ignored."""
    found: dict[str, None] = {}
    for line in text.split("\n"):
        address, *names = line.partition("#")[0].lower().split() or [""]
        if name in names:
            with contextlib.suppress(ValueError):
                found[str(IPv4Address(address))] = None
    return list(found)


def parse_name_servers(text: str) -> list[IPv4Address | IPv6Address]:
    """The name servers of a resolv.conf. Lines that glibc does not understand are ignored, as glibc does."""
    found = []
    for value in (value for key, value in _lines(text) if key == "nameserver"):
        # A comment can follow the address without a space.
        word = re.split(r"[ \t;#]", value, maxsplit=1)[0]
        try:
            address = ip_address(word)
        except ValueError:
            continue
        found.append(ip_address(_OWN[address.version]) if address.is_unspecified else address)
    return found[:MOST] or [ip_address(_OWN[4])]


def parse_search_domains(text: str, host_name: str) -> list[str]:
    """The last `search` or `domain` line counts; without one, the domain of the host's own name."""
    listed = [host_name.partition(".")[2]]
    for key, value in _lines(text):
        if key in ("search", "domain"):
            words = re.split(r"[;#]", value, maxsplit=1)[0].split()
            listed = words if key == "search" else words[:1]
    named = (word.rstrip(".").lower() for word in listed)
    return [name for name in named if _DOMAIN.fullmatch(name)][:MOST_DOMAINS]


def parse_use_tcp(text: str) -> bool:
    """`use-vc` among the words of any `options` line; of other options none changes which answer counts."""
    return any("use-vc" in value.split() for key, value in _lines(text) if key == "options")


def _read() -> str:
    try:
        return RESOLV_CONF.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(text: str) -> list[tuple[str, str]]:
    """Keyword and value of each line; a keyword stands at the beginning of its line."""
    return [(found[1], found[2]) for line in text.split("\n") if (found := _LINE.match(line))]
