"""The NoCloud seed: identity of the guest, static address, SSH host key, one login. Works with any stock cloud-init
image.

It contains no secret, no workspace and nothing of the run, because root in the guest can read it at any time.
"""

from __future__ import annotations

from typing import Any

import yaml

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Allocation, Facts
from ktrdr_vm.plan.guard_interface import GUEST_MAC


def render_meta_data(identity: Identity) -> str:
    return _dump({"instance-id": identity.instance_id, "local-hostname": identity.instance_id})


def render_network_config(allocation: Allocation) -> str:
    """Version 2. The NIC is identified by its MAC address."""
    nic = {
        "match": {"macaddress": GUEST_MAC},
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "link-local": [],
        "addresses": [f"{allocation.guest}/30"],
        "routes": [{"to": "0.0.0.0/0", "via": allocation.gateway}],
        "nameservers": {"addresses": [allocation.gateway]},
    }
    return _dump({"version": 2, "ethernets": {"guest": nic}})


def render_user_data(identity: Identity, facts: Facts, allocation: Allocation) -> str:
    user: dict[str, Any] = {
        "name": facts.image.user,
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
    }
    # No empty list: cloud-init's schema refuses it, and `cloud-init status` is then degraded.
    if allocation.login_public_key:
        user["ssh_authorized_keys"] = [allocation.login_public_key]
    data: dict[str, Any] = {
        "hostname": identity.instance_id,
        "preserve_hostname": False,
        "manage_etc_hosts": True,
        "ssh_pwauth": False,
        "disable_root": True,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": allocation.host_key, "ed25519_public": allocation.host_public_key},
        "no_ssh_fingerprints": True,
        "users": [user],
        "growpart": {"mode": "auto", "devices": ["/"], "ignore_growroot_disabled": False},
        "resize_rootfs": True,
        "package_update": False,
        "package_upgrade": False,
    }
    return "#cloud-config\n" + _dump(data)


def _dump(data: dict[str, Any]) -> str:
    return str(yaml.safe_dump(data, sort_keys=True, default_flow_style=False, allow_unicode=True, width=1000))
