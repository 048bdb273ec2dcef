"""Snapshots: the disk of a running instance at one moment, from which another instance can start.

An instance from a snapshot boots from power-on with its own identity, and contains no secret of the original. A
snapshot is in the folder of the original and is removed with it; instances that started from it have a copy and stay.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError, keep_end
from ktrdr_vm.guest.agent import wait_agent
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.durable import sync, write_durably
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.backing import open_template
from ktrdr_vm.instance.loaded import LoadedInstance, SecretReader
from ktrdr_vm.instance.resources.base import Notify, quiet
from ktrdr_vm.instance.secrets import remove_secrets
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.plan.plan import Plan

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
COPY_LIMIT = 1800.0
AGENT_LIMIT = 5.0

# The next boot creates a machine-id if there is none; the running system has already read its own.
_BLANK = """set -e
cp /etc/machine-id /run/ktrdr-machine-id
: > /etc/machine-id
rm -f /var/lib/systemd/random-seed
sync
"""
_UNBLANK = "[ ! -s /run/ktrdr-machine-id ] || cat /run/ktrdr-machine-id > /etc/machine-id; rm -f /run/ktrdr-machine-id"


@dataclass(frozen=True)
class Snapshot:
    """One snapshot, as its manifest describes it. `size` is the number of bytes that are allocated on the disk."""

    instance_id: str
    name: str
    image: str
    disk: int
    """MiB."""
    template: str
    created_at: str
    size: int


def take_snapshot(
    loaded: LoadedInstance,
    name: str,
    *,
    read_secret: SecretReader,
    mount_roots: tuple[str, ...] = (),
    reapply: Callable[[], object] = lambda: None,
    notify: Notify = quiet,
) -> Snapshot:
    """Copy the disk of a running instance. The instance is paused during the copy, and its secrets are delivered again
    afterwards; `reapply` delivers those of approvals, which are removed as well."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!a} is no name for a snapshot", hint="up to 63 of a-z, 0-9, . and -, such as before-upgrade"
        )
    loaded.target.refuse_suspended()
    plan = loaded.plan
    place = loaded.paths.snapshots / name
    if place.exists():
        raise UsageError(
            f"there is a snapshot {name} already",
            where=str(place),
            hint="choose another name, or --remove that one first",
        )
    partial = loaded.paths.snapshots / f".new-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    make_private(loaded.paths.snapshots, partial)
    try:
        remove_secrets(loaded, notify)
        try:
            copy_disk(loaded, partial / "disk.qcow2")
        finally:
            loaded.complete(read_secret=read_secret, mount_roots=mount_roots, notify=notify)
            reapply()
        made = Snapshot(
            instance_id=loaded.instance_id,
            name=name,
            image=plan.facts.image.digest,
            disk=plan.profile.resources.disk,
            template=loaded.journal.template,
            created_at=now(),
            size=(partial / "disk.qcow2").stat().st_blocks * 512,
        )
        write_durably(partial / "manifest.json", (json.dumps(asdict(made), indent=2) + "\n").encode())
        sync(partial)
        partial.rename(place)
        sync(place.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return made


def copy_disk(loaded: LoadedInstance, target: Path) -> None:
    """Create a consistent copy of a running instance's overlay, without its machine-id. The guest's writes are held
    back meanwhile."""
    guest, libvirt, domain = loaded.connect(), loaded.libvirt, loaded.identity.domain
    _run(guest, _BLANK, "forget its machine-id")
    try:
        frozen = _freeze(libvirt, domain)
        try:
            # QEMU writes its cached tables of the disk when it stops the VM.
            libvirt.suspend(domain)
            try:
                process.run(
                    ["cp", "--reflink=auto", "--sparse=always", loaded.paths.overlay, target], timeout=COPY_LIMIT
                )
                target.chmod(0o600)
                sync(target)
            finally:
                libvirt.resume(domain)
        finally:
            if frozen:
                libvirt.agent(domain, "guest-fsfreeze-thaw", timeout=30)
    finally:
        _run(guest, _UNBLANK, "restore its machine-id")
    _run(guest, f"date -u -s @{time.time():.3f}", "set its clock")


def _freeze(libvirt: Libvirt, domain: str) -> bool:
    """Freeze the guest's file systems; False without an agent. Such a guest was synced, and the journal of its file
    system is sufficient."""
    try:
        wait_agent(libvirt, domain, limit=AGENT_LIMIT)
    except KtrdrError:
        return False
    return isinstance(libvirt.agent(domain, "guest-fsfreeze-freeze", timeout=60), int)


def _run(guest: Guest, script: str, doing: str) -> None:
    done = guest.run(script, become=True, timeout=120)
    if done.exit_code != 0:
        said = keep_end(done.stderr.decode("utf-8", "replace").strip(), 300)
        raise ProvisionError(f"the guest could not {doing}: {said}", where="snapshot", hint="look in the guest")


def list_snapshots(home: Home, instance_id: str) -> list[Snapshot]:
    """Every finished snapshot of an instance, oldest first."""
    found = []
    for path in home.instance(instance_id).snapshots.glob("*/manifest.json"):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(Snapshot(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue  # incomplete; it is removed with the instance
    return sorted(found, key=lambda snapshot: snapshot.created_at)


def remove_snapshot(home: Home, instance_id: str, name: str) -> bool:
    """Remove a snapshot; False when there was none."""
    place = home.instance(instance_id).snapshots / name
    if _NAME.fullmatch(name) is None or not place.exists():
        return False
    doomed = place.with_name(f".gone-{name}")
    place.rename(doomed)
    shutil.rmtree(doomed)
    return True


def find_snapshot(home: Home, reference: str, plan: Plan) -> TemplateFacts | None:
    """The template that backs ID@NAME, if there is one. UsageError when there is no such snapshot, or when the plan
    needs another image or disk."""
    instance_id, _, name = reference.partition("@")
    identity = parse_instance_id(instance_id)
    for snapshot in list_snapshots(home, identity.instance_id):
        if snapshot.name == name:
            break
    else:
        raise UsageError(
            f"there is no snapshot {reference!a}", hint=f"`ktrdr-vm snapshot {identity.instance_id}` lists them"
        )
    image, disk = plan.facts.image.digest, plan.profile.resources.disk
    if snapshot.image != image or snapshot.disk != disk:
        raise UsageError(
            f"{reference} has image {snapshot.image[:12]} and {snapshot.disk} MiB, the profile asks for {image[:12]}"
            f" and {disk} MiB",
            hint="an instance keeps the image and the disk of the snapshot that it starts from",
        )
    return open_template(home, snapshot.template, thaw=False) if snapshot.template else None


# cloud-init adds its key to those that exist, and the network settings are those of the original.
_ADOPT = """set -eu
printf '%s\\n' "$KEY" > ~/.ssh/authorized_keys
sudo -n rm -f /etc/systemd/network/05-ktrdr.network
"""


def adopt(guest: Guest, login_public_key: str) -> None:
    """Remove the login key and the network settings of the original, so that only the instance's own key opens it."""
    done = guest.run(_ADOPT, environment={"KEY": login_public_key}, timeout=60)
    if done.exit_code != 0:
        raise ProvisionError(
            "the login key of the new instance could not be set", where="snapshot", hint="see its console.log"
        )
