"""The frozen content of a profile. Sizes are MiB, durations seconds, modes integers; the defaults are safe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.requests import Requests
from ktrdr_vm.profile.scalars import HeaderTemplate, Scalar

Mode = Literal["sandbox", "interactive"]


@dataclass(frozen=True)
class ImageRef:
    """A recipe by name, or any cloud-init image by URL and checksum. Exactly one of the two is set."""

    recipe: str = ""
    url: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Size:
    """The size of the VM: vCPUs, memory in MiB, disk in MiB."""

    vcpus: int = 2
    memory: int = 2048
    disk: int = 20480


@dataclass(frozen=True)
class Workspace:
    """The repository that the instance works on. `source` is relative to the folder that `--workspace` names."""

    source: str = "."
    target: str = "/workspace"
    transfer: Literal["copy", "mount"] = "copy"
    uncommitted: Literal["include", "refuse", "ignore"] = "include"
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mount:
    """A folder of the host in the guest, through virtiofs. Read-only unless the profile says otherwise."""

    source: str
    target: str
    readonly: bool = True


@dataclass(frozen=True)
class Egress:
    """The allowed egress. The default is none."""

    allow: tuple[EgressRule, ...] = ()
    mode: Literal["enforce", "observe"] = "enforce"


@dataclass(frozen=True, kw_only=True)
class Broker(Requests):
    """The use of a secret that never enters the guest: the guard adds it to requests to one host, over verified TLS."""

    header: HeaderTemplate
    after: str = ""
    """The gate that must have passed before any request goes out."""
    docker_mirror: bool = False
    """True if Docker in the guest uses this URL as the mirror of its default registry."""


@dataclass(frozen=True)
class Secret:
    """A secret by its source on the host. Its value is never stored in a profile, a plan or on a disk of the guest."""

    name: str
    path: str
    env: str = ""
    file: str = ""
    command: tuple[str, ...] = ()
    mode: int = 0o400
    ttl: int = 7200
    broker: Broker | None = None
    """If set, the secret is not delivered, and `path`, `mode` and `ttl` are ignored."""


@dataclass(frozen=True)
class Workload:
    """The command that runs in the instance between the first gate and the others."""

    command: tuple[str, ...]
    timeout: int = 7200


@dataclass(frozen=True)
class Prepare:
    """A playbook that runs once for a project; its result is in every later sandbox. It runs again if a file of `key`
    changes."""

    playbook: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class Telemetry:
    """The telemetry of the workload: an OTLP endpoint at the gateway, or none."""

    otlp: bool = False


Verify = Literal["fresh", "same"]
"""The VM in which the gates run after a workload: a fresh one, or that of the workload, which is weaker."""


@dataclass(frozen=True)
class Profile:
    """One sandbox, declared. The result of every `extends`, with defaults filled in."""

    name: str
    image: ImageRef
    version: int = 1
    mode: Mode = "sandbox"
    resources: Size = field(default_factory=Size)
    workspace: Workspace | None = None
    mounts: tuple[Mount, ...] = ()
    egress: Egress = field(default_factory=Egress)
    secrets: tuple[Secret, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    telemetry: Telemetry = field(default_factory=Telemetry)
    prepare: Prepare | None = None
    workload: Workload | None = None
    verify: Verify = "fresh"
    gates: tuple[str, ...] = ()
    gate_timeout: int = 1800
    vars: tuple[tuple[str, Scalar], ...] = ()
    artifacts: tuple[str, ...] = ()
    ttl: int = 0
    """Time to live of the instance in seconds; 0 is unlimited."""

    @property
    def brokered(self) -> tuple[tuple[Secret, Broker], ...]:
        """The secrets that the guard uses for the guest."""
        return tuple((secret, secret.broker) for secret in self.secrets if secret.broker is not None)

    @property
    def limited(self) -> tuple[Requests, ...]:
        """Requests that rules allow by method and path, without a secret."""
        return tuple(rule.requests for rule in self.egress.allow if rule.requests is not None)

    @property
    def delivered(self) -> tuple[Secret, ...]:
        """The secrets that are delivered into the guest."""
        return tuple(secret for secret in self.secrets if secret.broker is None)

    @property
    def asks(self) -> bool:
        """True if the guest has a user or a workload that can send escalations. Only then does the gateway have an
        inbox."""
        return self.workload is not None or self.mode == "interactive"

    @property
    def is_verified_apart(self) -> bool:
        """True if the commits of a workload are judged in a fresh VM. Without a workspace there are no commits."""
        return self.workload is not None and self.workspace is not None and self.verify == "fresh"
