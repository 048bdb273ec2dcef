"""The reserved ranges, which no profile, `extends`, preset or grant may allow by itself."""

from __future__ import annotations

from ipaddress import IPv4Network

# Dropped before any allow rule. RFC 6890 and its registry of special-purpose addresses, and addresses of cloud
# providers outside of private ranges (the others' metadata services are in 169.254/16, 100.64/10 and 192.0.0/24); the
# three documentation ranges (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24) are omitted on purpose: no LAN uses them,
# and test labs do.
RESERVED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "161.26.0.0/16",  # services of IBM Cloud for its VMs
        "166.8.0.0/14",  # the same
        "168.63.129.16/32",  # services of Azure for its VMs, including metadata
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)


def is_reserved(network: IPv4Network) -> bool:
    return any(network.overlaps(reserved) for reserved in RESERVED)
