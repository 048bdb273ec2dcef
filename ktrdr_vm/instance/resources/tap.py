"""The instance's routed tap: its own /30, no bridge, no neighbour, no IPv6, and a routing rule that forwards nothing."""

from __future__ import annotations

import json
import pwd
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import ForeignError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.instance.resources.base import Resource, Target

# Before the main table, after the local one: what is for the host itself arrives, all else is refused, whatever nft says.
RULE_PRIORITY = 32000

# The only user who may attach to the tap: libvirt's daemon, which opens it for QEMU.
OWNER = 0

# Set while the link is down. arp_ignore 1: no answer for the host's other addresses. rp_filter 1: nothing from a foreign source.
_SYSCTLS_V4 = {
    "arp_ignore": "1",
    "arp_announce": "2",
    "rp_filter": "1",
    "accept_redirects": "0",
    "send_redirects": "0",
    "accept_source_route": "0",
    "proxy_arp": "0",
    "forwarding": "0",
    "route_localnet": "0",
}


class Tap(Resource):
    kind = "tap"
    isolates = True

    @property
    def name(self) -> str:
        return self.target.identity.tap

    def exists(self) -> bool:
        return read_link(self.name) is not None or bool(self._rules())

    def create(self) -> None:
        allocation, identity = self.blueprint.allocation, self.target.identity
        link = read_link(self.name)
        if link is None:
            # A tap without an owner is open to every local user, who then is the guest.
            process.run(["ip", "tuntap", "add", "dev", self.name, "mode", "tap", "user", str(OWNER)], timeout=10)
            process.run(["ip", "link", "set", "dev", self.name, "address", identity.gateway_mac, "alias", self.target.mark], timeout=10)
        else:
            self._refuse_foreign(link)
        for key, value in _SYSCTLS_V4.items():
            _sysctl("ipv4", self.name, key).write_text(value)
        ipv6 = _sysctl("ipv6", self.name, "disable_ipv6")
        if ipv6.exists():
            ipv6.write_text("1")
        process.run(["ip", "addr", "replace", f"{allocation.gateway}/30", "dev", self.name], timeout=10)
        if not self._rules():
            process.run(["ip", "rule", "add", "iif", self.name, "priority", str(RULE_PRIORITY), "prohibit"], timeout=10)
        process.run(["ip", "link", "set", "dev", self.name, "up"], timeout=10)
        # The guest's address is known and not asked for: gratuitous ARP changes nothing.
        process.run(["ip", "neigh", "replace", allocation.guest, "lladdr", identity.mac, "dev", self.name, "nud", "permanent"], timeout=10)

    def verify(self) -> list[str]:
        link = read_link(self.name)
        if link is None:
            return ["the tap is gone"]
        differences = []
        if not link["is_owned"]:
            differences.append("any local user may attach to it")
        addresses = [f"{entry['local']}/{entry['prefixlen']}" for entry in link.get("addr_info", []) if entry["family"] == "inet"]
        if addresses != [f"{self.blueprint.allocation.gateway}/30"]:
            differences.append(f"addresses {addresses}")
        if "UP" not in link["flags"]:
            differences.append("the link is down")
        if not self._rules():
            differences.append("the routing rule that forwards nothing is gone")
        if link.get("master"):
            differences.append(f"enslaved to {link['master']}")
        for key, value in _SYSCTLS_V4.items():
            if _sysctl("ipv4", self.name, key).read_text().strip() != value:
                differences.append(f"net.ipv4.conf.{self.name}.{key} was changed")
        ipv6 = _sysctl("ipv6", self.name, "disable_ipv6")
        if ipv6.exists() and ipv6.read_text().strip() != "1":
            differences.append("IPv6 is on")
        return differences

    def remove(self) -> None:
        link = read_link(self.name)
        if link is not None:
            self._refuse_foreign(link)
            # The address first: while it is there and its route is not, what the host still has to say to the guest, such as the
            # end of an SSH connection, would take the default route.
            process.run(["ip", "addr", "flush", "dev", self.name], timeout=10)
            process.run(["ip", "link", "set", "dev", self.name, "down"], timeout=10)
            guest = [str(entry["local"]).rsplit(".", 1) for entry in link.get("addr_info", []) if entry["family"] == "inet"]
            # One that is not installed keeps no tap alive; the flows then end by themselves.
            for prefix, last in guest if process.find_program("conntrack") else []:
                # Flows that the table judged must not outlive it, nor the host's own to the guest, such as SSH, which the kernel would
                # keep for days. Exit 1 means there were none.
                for side in ("-s", "-d"):
                    process.run(["conntrack", "-D", side, f"{prefix}.{int(last) + 1}"], timeout=10, check=False)
            process.run(["ip", "tuntap", "del", "dev", self.name, "mode", "tap"], timeout=10)
        for _ in self._rules():
            process.run(["ip", "rule", "del", "iif", self.name, "priority", str(RULE_PRIORITY)], timeout=10)

    def _rules(self) -> list[dict[str, Any]]:
        listed = json.loads(process.run(["ip", "-j", "rule", "show"], timeout=10).stdout or b"[]")
        return [rule for rule in listed if rule.get("iif") == self.name]

    def _refuse_foreign(self, link: dict[str, Any]) -> None:
        # An alias is set a moment after the tap is made; a crash between leaves none, and the name's digest is ours.
        if link["ifalias"] not in ("", self.target.mark):
            raise ForeignError(
                f"the interface {self.name} exists and was not made for this instance",
                where=self.name,
                hint="look at it with `ip -d link show`",
            )

    def by_hand(self) -> str:
        return f"ip link del {self.name}; ip rule del iif {self.name}"


def close_link(target: Target) -> bool:
    """Set the link of the instance's tap down; True if it was up. What carried its traffic is gone, and nobody else may take its place."""
    link = read_link(target.identity.tap)
    if link is None or link["ifalias"] != target.mark or "UP" not in link["flags"]:
        return False
    process.run(["ip", "link", "set", "dev", target.identity.tap, "down"], timeout=10)
    return True


def close_unguarded(target: Target) -> bool:
    """Set the link down when no guard serves it; True if it was up. Nothing is asked of a guard that somebody else could be."""
    return not is_locked(target.paths.guard / "guard.lock") and close_link(target)


def read_link(name: str) -> dict[str, Any] | None:
    """`ip -d -j addr show` of one interface, with `ifalias` and `is_owned`; None when there is none."""
    if not Path("/sys/class/net", name).exists():
        return None
    shown = process.run(["ip", "-d", "-j", "addr", "show", "dev", name], timeout=10, check=False)
    if shown.exit_code != 0:
        if "does not exist" in shown.error_text:
            return None
        raise ProvisionError(f"ip cannot show the interface: {shown.error_text}", where=name, hint="`ktrdr-vm doctor` checks the host")
    found: list[dict[str, Any]] = [entry for entry in json.loads(shown.stdout) if entry]
    if not found:
        return None
    kind = found[0].get("linkinfo", {})
    # iproute2 gives the name of the user where there is one. Nobody attaches to an interface of another kind.
    is_owned = kind.get("info_kind") != "tun" or kind.get("info_data", {}).get("user") in (OWNER, pwd.getpwuid(OWNER).pw_name)
    # `ip addr` does not say the alias; the kernel does.
    alias = Path("/sys/class/net", name, "ifalias").read_text().strip()
    return {**found[0], "ifalias": alias, "is_owned": is_owned}


def _sysctl(family: str, interface: str, key: str) -> Path:
    return Path("/proc/sys/net", family, "conf", interface, key)
