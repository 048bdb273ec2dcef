"""Facts of the host that are collected before the plan, and values that are allocated when an instance is created."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from ktrdr_vm.identity import HOST_USERS, InstanceUsers
from ktrdr_vm.plan.guard_interface import GATEWAY, GUEST
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule

# Of a stock image, and of the shipped recipe.
STOCK_USER = "ktrdr"
# One address of the host's loopback for each slot, where the resolver answers the proxy.
_LOOPBACK = IPv4Address("127.213.0.0")


@dataclass(frozen=True)
class ImageFacts:
    """The image in the store, by the digest of its recipe; it need not be built yet."""

    name: str
    digest: str
    directory: str
    boot: Literal["direct", "disk"] = "direct"
    disk_format: Literal["raw", "qcow2"] = "raw"
    kernel_args: str = ""
    user: str = STOCK_USER

    @property
    def disk(self) -> str:
        return f"{self.directory}/disk.{self.disk_format}"


@dataclass(frozen=True)
class TemplateFacts:
    """A booted and saved VM: its disk, its memory as a file, and the rest of its state as a migration stream of
    QEMU."""

    key: str
    directory: str
    thaw: bool = True
    """True if the instance starts from the memory of the template.

    An instance that has run before starts from its disk only, which is newer than that memory.
    """
    has_project: bool = False
    """True if the disk of a project is between the disk of the template and the image."""
    readonly: bool = False
    """True if a fork opens the memory of the template for reading only."""
    branched: str = ""
    """The state of a running instance, with its memory, from which a branch starts in place of that of the template."""

    @property
    def disk(self) -> str:
        return f"{self.directory}/disk.qcow2"

    @property
    def project(self) -> str:
        """The overlay of a prepared project, on the image."""
        return f"{self.directory}/project.qcow2"

    @property
    def memory(self) -> str:
        return f"{self.directory}/memory"

    @property
    def pages(self) -> str:
        """Which parts of the memory a fork needs first."""
        return f"{self.directory}/pages.json"

    @property
    def state(self) -> str:
        return self.branched or f"{self.directory}/state"


@dataclass(frozen=True)
class HotplugReserve:
    """The reserve for hot-plug by approvals, for which the VM is prepared."""

    mounts: bool = False
    vcpus: int = 0
    """The maximal total; 0: no hot-plug."""
    memory: int = 0
    """The same in MiB."""


@dataclass(frozen=True)
class GuestFile:
    """A file of the guest that repeats a setting of the host, without credentials. `origin` says from where."""

    path: str
    text: str
    origin: str


AUTHORITIES = "/usr/local/share/ca-certificates/ktrdr-"
"""The first part of the path of a certificate in the guest."""
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""All certificates that the guest trusts, in one file."""
OWN_AUTHORITIES = "/etc/ktrdr/authorities.pem"
"""Only those of the host, in one file."""


@dataclass(frozen=True)
class Facts:
    """All facts of the host on which a plan depends, collected once. Paths are absolute."""

    accelerator: Literal["kvm", "tcg"]
    emulator: str
    machine: str
    home: str
    image: ImageFacts
    cpu_controller: bool = True
    """True if libvirt can limit CPU time through cgroups on this host."""
    owner_uid: int = 0
    owner_gid: int = 0
    workspace: str = ""
    base_ref: str = ""
    base_commit: str = ""
    playbooks: tuple[tuple[str, str], ...] = ()
    """Gate name and sha256 of its playbook, in the order of the profile."""
    presets: tuple[tuple[str, tuple[EgressRule, ...]], ...] = ()
    client_files: tuple[GuestFile, ...] = ()
    """Settings of package clients of the presets, and certificates of authorities that the host trusts."""
    owner_reserved: tuple[tuple[IPv4Address, int], ...] = ()
    collector: Collector | None = None
    """The collector of the owner, if the profile has telemetry."""
    lending: HotplugReserve = HotplugReserve()
    """The limits of the owner's policy for hot-plug, if the profile can send escalations."""

    @property
    def owner(self) -> tuple[int, int]:
        """User and group of the invoking user, to whom the evidence belongs."""
        return self.owner_uid, self.owner_gid


@dataclass(frozen=True)
class Allocation:
    """The values that are allocated when an instance is created. In a plan every value is a named placeholder."""

    gateway: str = GATEWAY
    guest: str = GUEST
    loopback: str = "<loopback>"
    """Address of the host where the proxy asks the resolver."""
    genid: str = "<genid>"
    proxy_uid: str = "<proxy-uid>"
    resolver_uid: str = "<resolver-uid>"
    relay_uid: str = "<relay-uid>"
    sender_uid: str = "<sender-uid>"
    inbox_uid: str = "<inbox-uid>"
    host_key: str = "<host-key>"
    host_public_key: str = "<host-public-key>"
    login_public_key: str = "<login-public-key>"


PLACEHOLDER = Allocation()


def allocate(
    slot: int,
    *,
    genid: str,
    host_key: str,
    host_public_key: str,
    login_public_key: str,
    users: InstanceUsers = HOST_USERS,
) -> Allocation:
    """The loopback address and the users of a slot, 0 to `users.slots` - 1."""
    # Two unprivileged users for each slot, two more for telemetry after all of those, and one for escalations.
    proxy, relay, inbox = (
        users.first + 2 * slot,
        users.first + 2 * (users.slots + slot),
        users.first + 4 * users.slots + slot,
    )
    return Allocation(
        loopback=str(_LOOPBACK + slot + 1),
        genid=genid,
        proxy_uid=str(proxy),
        resolver_uid=str(proxy + 1),
        relay_uid=str(relay),
        sender_uid=str(relay + 1),
        inbox_uid=str(inbox),
        host_key=host_key,
        host_public_key=host_public_key,
        login_public_key=login_public_key,
    )
