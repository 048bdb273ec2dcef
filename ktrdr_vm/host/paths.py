"""Every name on disk, in one place. docs/files.md explains them.

$KTRDR_VM_HOME/                          default /var/lib/ktrdr-vm; 0711, so QEMU's user can traverse and nobody can list
  images/<digest>/                       disk, kernel, initrd, manifest (the image store)
  templates/<key>/                       frozen VMs
  locks/<instance_id>.lock               flock of whoever changes the instance; locks/slots.lock for allocation
  instances/<instance_id>/
    journal.json                         what was meant to be made, what stands, what was allocated
    overlay.qcow2 seed.iso console.log
    saved                                the machine's state while it is suspended
    snapshots/<name>/                    disk.qcow2, manifest.json: what another instance may begin from
    ssh/                                 host_key, host_key.pub, login_key
    guard/                               proxy.cfg, *.names, *.suffixes, egress.json, guard.lock, control.sock, guard.log
    mounts/<n>                           read-only binds that virtiofs serves
    egress.jsonl                         the ledger
    escalations/e<n>.json                what its agent asked for, and the answers; stop.json where a run waits for one
  runs/<instance_id>/<run_id>/           the evidence of one run; `latest` points to the newest; host/runs.py opens what is in it
  digests/<instance_id>/<run_id>.json    what each file of it was when it was handed to its person
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.path_trust import find_changeable

_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")
DEFAULT_HOME = Path("/var/lib/ktrdr-vm")
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Home:
    """The state directory of one owner."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def instances(self) -> Path:
        return self.root / "instances"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def instance(self, instance_id: str) -> InstancePaths:
        return InstancePaths(self.root, self.instances / instance_id)

    def run(self, instance_id: str, run_id: str) -> Path:
        """Where the evidence of a run is. `host/runs.py` makes it and opens it."""
        return self.runs / instance_id / run_id

    def lock(self, instance_id: str) -> Path:
        return self.locks / f"{instance_id}.lock"

    def create(self) -> None:
        """Make what is missing. 0711: to be passed through by QEMU's user, to be listed by the owner only.

        HostError where others than this user and root may change a folder on the way: they could put another in its place.
        """
        if changeable := find_changeable(self.root):
            raise HostError(
                f"the state directory can be changed by others: {changeable}",
                where=str(self.root),
                hint=f"chown it to who runs this, and chmod go-w {changeable}; or set $KTRDR_VM_HOME to another folder",
            )
        try:
            for directory in (self.root, self.images, self.templates, self.instances):
                directory.mkdir(mode=0o711, parents=True, exist_ok=True)
                directory.chmod(0o711)
            for directory in (self.locks, self.runs):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"the state directory cannot be made: {error.strerror}",
                where=str(error.filename or self.root),
                hint="run as its owner, or set $KTRDR_VM_HOME to a folder that may be written",
            ) from None


@dataclass(frozen=True)
class InstancePaths:
    """The files of one instance."""

    home: Path
    directory: Path

    @property
    def journal(self) -> Path:
        return self.directory / "journal.json"

    @property
    def overlay(self) -> Path:
        return self.directory / "overlay.qcow2"

    @property
    def seed(self) -> Path:
        return self.directory / "seed.iso"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def saved(self) -> Path:
        return self.directory / "saved"

    @property
    def snapshots(self) -> Path:
        return self.directory / "snapshots"

    @property
    def host_key(self) -> Path:
        return self.directory / "ssh" / "host_key"

    @property
    def login_key(self) -> Path:
        return self.directory / "ssh" / "login_key"

    @property
    def guard(self) -> Path:
        return self.directory / "guard"

    @property
    def escalations(self) -> Path:
        return self.directory / "escalations"

    @property
    def stop(self) -> Path:
        """Where a run stopped at an escalation, for who takes it up again."""
        return self.directory / "stop.json"

    @property
    def mounts(self) -> Path:
        return self.directory / "mounts"

    @property
    def ledger(self) -> Path:
        return self.directory / "egress.jsonl"


def find_home() -> Home:
    """`$KTRDR_VM_HOME`, or the default."""
    # Resolved, because taps and tables carry a digest of it: two spellings of one folder are one home.
    root = Path(os.environ.get("KTRDR_VM_HOME") or DEFAULT_HOME).resolve()
    if not _PLAIN.fullmatch(str(root)):
        raise UsageError(
            f"{str(root)!a} cannot be the state directory",
            where="KTRDR_VM_HOME",
            hint="it stands in configurations of QEMU and HAProxy: use letters, digits and / . _ + - only",
        )
    return Home(root)


def find_shipped(kind: str, name: str) -> Path | None:
    """A shipped profile, playbook or recipe: beside the package in a checkout, under share/ when installed."""
    return next((path for base in _find_shares() if (path := base / kind / name).is_file()), None)


def list_shipped(kind: str) -> list[str]:
    """The names of all shipped documents of a kind, without their ending, sorted."""
    return sorted({path.stem for base in _find_shares() for path in (base / kind).glob("*.yaml")})


def _find_shares() -> tuple[Path, ...]:
    if (PROJECT / "pyproject.toml").is_file():
        # What an editable installation has copied under share/ is older than the checkout.
        return (PROJECT,)
    import sysconfig

    return (Path(sysconfig.get_path("data")) / "share" / "ktrdr-vm",)
