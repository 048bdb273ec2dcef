"""The host's own name servers, from its resolv.conf: read again, since a host moves to other networks."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
# As glibc: further ones are not asked.
MOST = 3


def find_upstreams() -> list[str]:
    """Addresses in the order in which they are asked; none when the file is not there or names none."""
    try:
        lines = RESOLV_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for words in (line.split() for line in lines):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(str(ip_address(words[1])))
            except ValueError:
                continue  # with a scope, or nonsense
    return found[:MOST]
