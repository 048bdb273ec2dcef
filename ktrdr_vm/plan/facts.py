"""What is known of the host before anything is planned, and what is allocated only when an instance is created."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule

# One /30 for each instance. The owner of a host whose LAN lives here is told by `doctor`.
POOL = IPv4Network("10.213.0.0/16")
SLOTS = POOL.num_addresses // 4

# Two unprivileged users for each slot, from the range that systemd's UIDS-GIDS document leaves unused.
_UID_BASE = 1_900_000_000
# Two more for telemetry, behind all of those.
_TELEMETRY_UID_BASE = _UID_BASE + 2 * SLOTS
_INBOX_UID_BASE = _UID_BASE + 4 * SLOTS


@dataclass(frozen=True)
class ImageFacts:
    """The image as the store knows it by the recipe's digest; it need not be built yet."""

    name: str
    digest: str
    directory: str
    boot: Literal["direct", "disk"] = "direct"
    disk_format: Literal["raw", "qcow2"] = "raw"
    kernel_args: str = ""
    user: str = "ktrdr"

    @property
    def disk(self) -> str:
        return f"{self.directory}/disk.{self.disk_format}"


@dataclass(frozen=True)
class TemplateFacts:
    """A booted, frozen VM: its disk, its memory as a file, and the rest of its state as QEMU's migration stream."""

    key: str
    directory: str
    thaw: bool = True
    """True if the instance starts from the memory of the template.

    An instance that has run before starts from its disk only, which is newer than that memory.
    """
    has_project: bool = False
    """True if the disk of a project is between the disk of the template and the image."""

    @property
    def disk(self) -> str:
        return f"{self.directory}/disk.qcow2"

    @property
    def project(self) -> str:
        """What preparing a project wrote, on top of the image."""
        return f"{self.directory}/project.qcow2"

    @property
    def memory(self) -> str:
        return f"{self.directory}/memory"

    @property
    def state(self) -> str:
        return f"{self.directory}/state"


@dataclass(frozen=True)
class Lending:
    """What approvals may plug into the running machine: the machine is made ready for it, and has none of it yet."""

    mounts: bool = False
    vcpus: int = 0
    """The most it may have, with its own; 0 is no more than its own."""
    memory: int = 0
    """The same, in MiB."""


@dataclass(frozen=True)
class Facts:
    """Everything of the host that a plan depends on, gathered once. Paths are absolute."""

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
    owner_reserved: tuple[tuple[IPv4Address, int], ...] = ()
    collector: Collector | None = None
    """The owner's, where the profile has telemetry."""
    lending: Lending = Lending()
    """As far as the owner's policy lets escalations go, where the profile has somebody who asks."""

    @property
    def owner(self) -> tuple[int, int]:
        """User and group of the person who asked, to whom the evidence belongs."""
        return self.owner_uid, self.owner_gid


@dataclass(frozen=True)
class Allocation:
    """What one instance was given when it was created. In a plan every value is a named placeholder."""

    gateway: str = "<gateway>"
    guest: str = "<guest>"
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


def allocate(slot: int, *, genid: str, host_key: str, host_public_key: str, login_public_key: str) -> Allocation:
    """The addresses and users of a slot, 0 to SLOTS - 1."""
    first = int(POOL.network_address) + 4 * slot
    return Allocation(
        gateway=str(IPv4Address(first + 1)),
        guest=str(IPv4Address(first + 2)),
        genid=genid,
        proxy_uid=str(_UID_BASE + 2 * slot),
        resolver_uid=str(_UID_BASE + 2 * slot + 1),
        relay_uid=str(_TELEMETRY_UID_BASE + 2 * slot),
        sender_uid=str(_TELEMETRY_UID_BASE + 2 * slot + 1),
        inbox_uid=str(_INBOX_UID_BASE + slot),
        host_key=host_key,
        host_public_key=host_public_key,
        login_public_key=login_public_key,
    )
