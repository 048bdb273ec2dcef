"""The name servers of the host, from its resolv.conf, which is read repeatedly because the host may change networks."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from ktrdr_vm.users import in_user_namespace

RESOLV_CONF = Path("/etc/resolv.conf")
# In a world, pasta forwards queries to this address to the first name server, which may listen on the host's own
# loopback.
FORWARDED = "169.254.213.53"
# As in glibc: further ones are ignored.
MOST = 3


def find_upstreams() -> list[str]:
    """Addresses in the order of use; empty if the file does not exist or names none."""
    try:
        lines = RESOLV_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for words in (line.split() for line in lines):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ip_address(words[1])
            except ValueError:
                continue  # with a scope, or invalid
            found.append(FORWARDED if address.is_loopback and in_user_namespace() else str(address))
    return found[:MOST]
