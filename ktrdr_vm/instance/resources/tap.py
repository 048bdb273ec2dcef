"""The instance's tap: created on the host for QEMU to open, then moved into the namespace of the instance, where it
gets its address.

On the host it is down and has no address, and only root may attach to it. In the namespace nobody else can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktrdr_vm.errors import ForeignError
from ktrdr_vm.host import netns, process
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.host.links import TAP_OWNER, has_link, make_ip, read_link
from ktrdr_vm.instance.resources.base import Resource, Target
from ktrdr_vm.plan.facts import Allocation
from ktrdr_vm.plan.guard_interface import GATEWAY_MAC, GUEST_MAC

# Set while the link is down. arp_ignore 1: no answer for other addresses. rp_filter 1: no packet from a foreign source.
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
        return self._find_outside() is not None or self._find_inside() is not None

    def create(self) -> None:
        if self.target.is_running():
            # QEMU has it open, and the move was not finished, or the link was set down when its guard ended.
            self.blueprint.await_isolation()
            move_in(self.target, self.blueprint.allocation)
            return
        if self._find_inside() is not None:
            # Of a VM that has ended: QEMU opens a tap on the host only.
            process.run([*make_ip(self.target.identity.namespace), "link", "del", "dev", self.name], timeout=10)
        link = self._find_outside()
        if link is None:
            make_tap(self.name, self.target.mark)
            return
        self._refuse_foreign(link)
        _run_batch(_render_down(self.name, self.target.mark))

    def verify(self) -> list[str]:
        outside = self._find_outside()
        if outside is not None:
            return self._verify_outside(outside)
        link = self._find_inside()
        return ["the tap is gone"] if link is None else self._verify_inside(link)

    def _verify_outside(self, link: dict[str, Any]) -> list[str]:
        """Its differences on the host, where it is until QEMU has opened it."""
        differences = [] if link["is_owned"] else ["any local user may attach to it"]
        if "UP" in link["flags"]:
            differences.append("the link is up outside of its namespace")
        if self.target.is_running():
            differences.append("it is not in the namespace")
        return differences

    def _verify_inside(self, link: dict[str, Any]) -> list[str]:
        differences = []
        addresses = [
            f"{entry['local']}/{entry['prefixlen']}" for entry in link.get("addr_info", []) if entry["family"] == "inet"
        ]
        if addresses != [f"{self.blueprint.allocation.gateway}/30"]:
            differences.append(f"addresses {addresses}")
        if "UP" not in link["flags"]:
            differences.append("the link is down")
        elif "NO-CARRIER" in link["flags"]:
            differences.append("no VM is attached to it")
        if link.get("master"):
            differences.append(f"enslaved to {link['master']}")
        return differences + netns.run_inside(self.target.identity.namespace, lambda: _find_changed(self.name))

    def remove(self) -> None:
        link = self._find_inside()
        if link is not None:
            self._refuse_foreign(link)
            process.run([*make_ip(self.target.identity.namespace), "link", "del", "dev", self.name], timeout=10)
        link = self._find_outside()
        if link is not None:
            self._refuse_foreign(link)
            process.run(["ip", "link", "del", "dev", self.name], timeout=10)

    def _find_outside(self) -> dict[str, Any] | None:
        return read_link(self.name)

    def _find_inside(self) -> dict[str, Any] | None:
        return read_link(self.name, self.target.identity.namespace)

    def _refuse_foreign(self, link: dict[str, Any]) -> None:
        # The alias is set just after the tap is created; a crash in between leaves none, and the name's digest is ours.
        if link["ifalias"] not in ("", self.target.mark):
            raise ForeignError(
                f"the interface {self.name} exists and was not made for this instance",
                where=self.name,
                hint="inspect it with `ip -d link show`",
            )

    def by_hand(self) -> str:
        return f"ip link del {self.name}; ip netns del {self.target.identity.namespace}"


def make_tap(name: str, mark: str) -> None:
    """Create a tap that is down. Only root may attach to it: a tap without an owner is open to every local user, who
    could act as the guest."""
    _run_batch(f"tuntap add dev {name} mode tap user {TAP_OWNER}", _render_down(name, mark))


def _render_down(name: str, mark: str) -> str:
    return f'link set dev {name} down address {GATEWAY_MAC} alias "{mark}"'


def _run_batch(*commands: str, namespace: str = "") -> None:
    """Commands of `ip` in one process, which stops at the first that fails."""
    argv = [*process.DIES_WITH_CALLER, *make_ip(namespace), "-batch", "-"]
    process.run(argv, stdin="".join(f"{one}\n" for one in commands).encode(), timeout=10)


def remove_tap(name: str) -> None:
    """Remove the tap of a template, which stays where it was created. No error when it does not exist."""
    if has_link(name):
        process.run(["ip", "link", "del", "dev", name], timeout=10)


def move_in(target: Target, allocation: Allocation) -> None:
    """Move the tap that QEMU has opened into the namespace, and set it up there. Until then it is down and passes no
    frame."""
    move_inside(target)
    set_up(target, allocation)


def move_inside(target: Target) -> None:
    """Move the tap into the namespace, still down."""
    identity = target.identity
    if has_link(identity.tap):
        process.run(["ip", "link", "set", "dev", identity.tap, "netns", identity.namespace], timeout=10)
    netns.run_inside(identity.namespace, lambda: _write_sysctls(identity.tap))


def set_up(target: Target, allocation: Allocation) -> None:
    """Give the tap in the namespace its address, and set it up."""
    tap = target.identity.tap
    _run_batch(
        f"addr replace {allocation.gateway}/30 dev {tap}",
        f"link set dev {tap} up",
        # The guest's address is configured and not resolved by ARP: gratuitous ARP changes nothing.
        f"neigh replace {allocation.guest} lladdr {GUEST_MAC} dev {tap} nud permanent",
        namespace=target.identity.namespace,
    )


def close_link(target: Target) -> bool:
    """Set the link of the instance's tap down; True if it was up. Called when the guard that carried its traffic has
    ended."""
    namespace = target.identity.namespace
    link = read_link(target.identity.tap, namespace)
    if link is None or link["ifalias"] != target.mark or "UP" not in link["flags"]:
        return False
    process.run([*make_ip(namespace), "link", "set", "dev", target.identity.tap, "down"], timeout=10)
    return True


def is_guarded(target: Target) -> bool:
    """Whether a guard serves the instance. Only the lock is checked: another process could answer for the guard."""
    return is_locked(target.paths.guard / "guard.lock")


def close_unguarded(target: Target) -> bool:
    """Set the link down when no guard serves it; True if it was up."""
    return not is_guarded(target) and close_link(target)


def _write_sysctls(interface: str) -> None:
    for path, value in _list_sysctls(interface):
        path.write_text(value)


def _find_changed(interface: str) -> list[str]:
    settings = _list_sysctls(interface)
    return [
        f"{path.parent.name}.{path.name} was changed" for path, value in settings if path.read_text().strip() != value
    ]


def _list_sysctls(interface: str) -> list[tuple[Path, str]]:
    """The settings of the interface, to be read and written in its namespace."""
    found = [(Path("/proc/sys/net/ipv4/conf", interface, key), value) for key, value in _SYSCTLS_V4.items()]
    ipv6 = Path("/proc/sys/net/ipv6/conf", interface, "disable_ipv6")
    return [*found, (ipv6, "1")] if ipv6.exists() else found
