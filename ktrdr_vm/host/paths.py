"""Every name on disk. docs/files.md explains them.

$KTRDR_VM_HOME/                      default /var/lib/ktrdr-vm; 0711: QEMU's user can traverse, only the owner list it
  images/<digest>/                   disk, kernel, initrd, manifest (the image store)
  templates/<key>/                   saved VMs
  locks/<instance_id>.lock           flock of the process that changes the instance; locks/slots.lock for allocation
  instances/<instance_id>/
    journal.json                     recorded resources, their state, allocated values
    overlay.qcow2 seed.iso console.log
    saved                            the state of the VM while it is suspended
    snapshots/<name>/                disk.qcow2, manifest.json: another instance can be created from it
    ssh/                             host_key, host_key.pub, login_key, login_key.pub, known_hosts
    guard/                           proxy.cfg, *.names, *.suffixes, egress.json, guard.lock, control.sock, guard.log
    loose/                           files.tar, names.json: uncommitted files, for the fresh VM of a verification
    mounts/<n>                       read-only binds that virtiofs serves
    egress.jsonl                     the ledger
    escalations/e<n>.json            requests and answers; stop.json is the checkpoint of a run that waits
  ssh/<instance_id>.ktrdr            a link to the folder of its keys, for one block of OpenSSH's configuration
  runs/<instance_id>/<run_id>/       the evidence of one run; `latest` points to the newest; host/runs.py opens it
  digests/<instance_id>/<run_id>.json digests of its files at the time when it was handed over
  attestation-key attestation-key.pub the key that signs attestations, and its public key
  clients/<uid>-<preset>.json        answers of package clients, and the files that they read for them
  clients/qemu.json                  the version of QEMU
  spool/                             requests that run on this host, with their attempts (places/filenames.py)
  workspaces/<request_id>/           the workspace of a request, created again while it runs
  submitted/<request_id>.json        requests that were sent from here, and their destinations
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.identity import SSH_SUFFIX
from ktrdr_vm.users import find_changeable, find_own_folder

_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")
DEFAULT_HOME = Path("/var/lib/ktrdr-vm")
PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parent


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

    @property
    def attestation_key(self) -> Path:
        return self.root / "attestation-key"

    @property
    def attestation_public_key(self) -> Path:
        return self.root / "attestation-key.pub"

    @property
    def clients(self) -> Path:
        return self.root / "clients"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def workspaces(self) -> Path:
        """Private copies of the workspaces of requests, each while its attempt runs."""
        return self.root / "workspaces"

    @property
    def submitted(self) -> Path:
        return self.root / "submitted"

    def instance(self, instance_id: str) -> InstancePaths:
        return InstancePaths(self.root, self.instances / instance_id)

    def run(self, instance_id: str, run_id: str) -> Path:
        """The folder of the evidence of a run, which `host/runs.py` creates and opens."""
        return self.runs / instance_id / run_id

    def lock(self, instance_id: str) -> Path:
        return self.locks / f"{instance_id}.lock"

    def create(self) -> None:
        """Create missing folders, with mode 0711: the user of QEMU can traverse them, and only the owner can list them.

        HostError if a user other than this one and root may change a folder of the path, and could replace it.
        """
        if changeable := find_changeable(self.root):
            raise HostError(
                f"other users can change the state directory: {changeable}",
                where=str(self.root),
                hint=(
                    f"chown it to the user of ktrdr-vm and `chmod go-w {changeable}`, or set $KTRDR_VM_HOME to another"
                    " folder"
                ),
            )
        try:
            # Also the folders above it that do not exist, which `parents` would create with the mode of the umask.
            missing = [one for one in reversed(self.root.parents) if not one.exists()]
            for directory in (*missing, self.root, self.images, self.templates, self.instances):
                directory.mkdir(mode=0o711, exist_ok=True)
                directory.chmod(0o711)
            for directory in (self.locks, self.runs):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"the state directory cannot be created: {error.strerror}",
                where=str(error.filename or self.root),
                hint="run as its owner, or set $KTRDR_VM_HOME to a writable folder",
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
    def branching(self) -> Path:
        """Memory and disk of this instance while branches of it are created."""
        return self.directory / "branching"

    @property
    def host_key(self) -> Path:
        return self.directory / "ssh" / "host_key"

    @property
    def login_key(self) -> Path:
        return self.directory / "ssh" / "login_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "ssh" / "known_hosts"

    @property
    def ssh_alias(self) -> Path:
        """A link to the folder of its keys, by the name under which OpenSSH's wildcard block finds them."""
        return self.home / "ssh" / f"{self.directory.name}{SSH_SUFFIX}"

    @property
    def guard(self) -> Path:
        return self.directory / "guard"

    @property
    def escalations(self) -> Path:
        return self.directory / "escalations"

    @property
    def stop(self) -> Path:
        """The checkpoint of a run that stopped at an escalation."""
        return self.directory / "stop.json"

    @property
    def loose(self) -> Path:
        """The uncommitted files of the workspace as the gates of the base had them, for the fresh VM of the
        verification."""
        return self.directory / "loose"

    @property
    def mounts(self) -> Path:
        return self.directory / "mounts"

    @property
    def ledger(self) -> Path:
        return self.directory / "egress.jsonl"


def find_home() -> Home:
    """`$KTRDR_VM_HOME`, or the default."""
    # Resolved, because marks of taps and tables contain a digest of it: two spellings of one folder are one state
    # directory.
    named = Path(os.environ.get("KTRDR_VM_HOME") or _find_default())
    try:
        root = named.resolve()
    except RuntimeError:
        # What Python before 3.13 says of links that lead to each other.
        raise UsageError(
            f"{str(named)!a} cannot be the state directory: its links lead in a circle",
            where="KTRDR_VM_HOME",
            hint="name a folder",
        ) from None
    if root == Path("/"):
        raise UsageError(
            "the root of the file system cannot be the state directory",
            where="KTRDR_VM_HOME",
            hint="name a folder of its own: only its owner may list it",
        )
    if not _PLAIN.fullmatch(str(root)):
        raise UsageError(
            f"{str(root)!a} cannot be the state directory",
            where="KTRDR_VM_HOME",
            hint="configurations of QEMU and HAProxy contain it: use letters, digits and / . _ + - only",
        )
    return Home(root)


def _find_default() -> Path:
    """For root the directory of the host, for other users a folder in their own state directory."""
    if os.geteuid() == 0:
        return DEFAULT_HOME
    return find_own_folder("XDG_STATE_HOME", ".local/state")


def find_shipped(kind: str, name: str) -> Path | None:
    """A shipped profile, playbook or recipe; None if there is none of that name, and for a path."""
    # A name that no file can have is that of none.
    if Path(name).name != name or len(os.fsencode(name)) > 255:
        return None
    path = find_shipped_folder() / kind / name
    return path if path.is_file() else None


def find_shipped_profile(name: str) -> Path | None:
    """A shipped profile by its name, with or without its ending, one of an agent too."""
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    return find_shipped("profiles", file) or find_shipped("profiles/agents", file)


def list_shipped(kind: str) -> list[str]:
    """The names of all shipped documents of a kind, without their ending, sorted."""
    return sorted(path.stem for path in (find_shipped_folder() / kind).glob("*.yaml"))


def find_shipped_folder() -> Path:
    """The folder of profiles/, playbooks/, images/ and dashboards/: `shipped` in an installed package, the top of a
    checkout."""
    installed = PACKAGE / "shipped"
    return installed if installed.is_dir() else PROJECT
