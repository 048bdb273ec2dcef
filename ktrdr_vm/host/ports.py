"""Privileged ports: only root may listen on them, and the ports of the guard must be among them."""

from __future__ import annotations

from pathlib import Path

from ktrdr_vm.errors import HostError

_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def require_privileged_ports(last: int) -> None:
    """HostError if users other than root may listen on a port up to `last`."""
    try:
        first = int(_START.read_text())
    except (OSError, ValueError):
        return  # a kernel before 4.11 has no such setting: 1024
    if first <= last:
        raise HostError(
            f"every local user may listen on ports from {first} on, which include those of the guard",
            where="net.ipv4.ip_unprivileged_port_start",
            hint="run `sysctl -w net.ipv4.ip_unprivileged_port_start=1024`, and search /etc/sysctl.d for the file that changes it",
        )
