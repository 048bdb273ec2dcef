"""Network interfaces, as `ip` shows them, on the host or in a named network namespace."""

from __future__ import annotations

import json
import socket
from typing import Any

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import netns, process
from ktrdr_vm.users import name_user

# The only user who may attach to a tap: libvirt's daemon, which opens it for QEMU.
TAP_OWNER = 0


def has_link(name: str, namespace: str = "") -> bool:
    """True if the interface exists. The kernel is asked, without a program."""
    if namespace and not netns.is_namespace(namespace):
        return False
    try:
        return netns.run_inside(namespace, lambda: socket.if_nametoindex(name)) > 0
    except (OSError, ProvisionError):  # there is no such interface, or no namespace any more
        return False


def read_link(name: str, namespace: str = "") -> dict[str, Any] | None:
    """`ip -d -j addr show` of one interface, with `ifalias` and `is_owned`; None if the interface or the namespace does
    not exist."""
    if not has_link(name, namespace):
        return None
    shown = process.run([*make_ip(namespace), "-d", "-j", "addr", "show", "dev", name], timeout=10, check=False)
    if shown.exit_code != 0:
        if (
            "does not exist" in shown.error_text
            or netns.FOLDER in shown.error_text
            or "network namespace" in shown.error_text
        ):
            return None
        raise ProvisionError(
            f"ip cannot show the interface: {shown.error_text}", where=name, hint="`ktrdr-vm doctor` checks the host"
        )
    found: list[dict[str, Any]] = [entry for entry in json.loads(shown.stdout) if entry]
    if not found:
        return None
    kind = found[0].get("linkinfo", {})
    # iproute2 prints the name of the user if there is one. Interfaces of other kinds cannot be attached to.
    is_owned = kind.get("info_kind") != "tun" or kind.get("info_data", {}).get("user") in (
        TAP_OWNER,
        name_user(TAP_OWNER),
    )
    return {"ifalias": "", **found[0], "is_owned": is_owned}


def list_links(namespace: str = "") -> dict[str, str]:
    """The names of the interfaces, each with its alias. Empty if there is no such namespace."""
    if namespace and not netns.is_namespace(namespace):
        return {}
    listed = process.run([*make_ip(namespace), "-j", "link", "show"], timeout=10, check=not namespace)
    entries = json.loads(listed.stdout or b"[]") if listed.exit_code == 0 else []
    return {str(entry["ifname"]): str(entry.get("ifalias", "")) for entry in entries if entry}


def make_ip(namespace: str) -> list[str]:
    """`ip` for a named namespace, or for the namespace of this process."""
    return ["ip", *(["-n", namespace] if namespace else [])]
