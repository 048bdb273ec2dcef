"""Templates: VMs that are booted and saved once, and forked many times.

A template contains no data of a profile: no secret, no workspace, no login. Its NIC has the address that every instance
has, and its tap is down. It belongs to one owner and one image, and its key contains everything that a fork must share
with it. That of a project is based on the disk of the prepared project.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import GuestError, HostError, KtrdrError
from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.confinement import make_memory_rules, remove_profile, write_profile
from ktrdr_vm.host.durable import sync
from ktrdr_vm.host.fork import save_state
from ktrdr_vm.host.journal import locked
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import set_rights
from ktrdr_vm.host.waiting import announce_wait
from ktrdr_vm.identity import Identity
from ktrdr_vm.images.store import Image, ImageStore
from ktrdr_vm.instance.resources.overlay import BOOT_FILES, copy_boot_files
from ktrdr_vm.instance.resources.seed import make_seed
from ktrdr_vm.instance.resources.tap import make_tap, remove_tap
from ktrdr_vm.plan.cloud_init import render_meta_data, render_network_config, render_user_data
from ktrdr_vm.plan.domain_xml import render_template_domain
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan

# Incremented if the preparation of a guest before the save changes.
FORMAT = 1
BOOT_LIMIT = 600.0
# In the folder of the templates: the console of the last one that could not be made.
FAILED_CONSOLE = "failed-console.log"
_KEPT_CONSOLE = 1 << 20
# A template that nobody has forked for so long is collected.
UNUSED_DAYS = 14
QEMU_USER = "libvirt-qemu"
_KEY_LENGTH = 32

# Starts late services, and runs each preloaded container image once, so that its pages are in memory.
_SETTLE = """set -e
! command -v cloud-init >/dev/null || cloud-init status --wait >/dev/null || true
# A module that the first container of a fork needs.
modprobe -a veth 2>/dev/null || true
if command -v dockerd >/dev/null; then
  systemctl start docker.service
  for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}'); do
    docker run --rm --network none "$image" true >/dev/null || true
  done
fi
# One login, so that what it reads is in memory. Its key is for this one.
if command -v ssh-keygen >/dev/null; then
  home=$(getent passwd "$user" | cut -d: -f6)
  ssh-keygen -q -t ed25519 -N '' -f /run/warm
  mkdir -p "$home/.ssh"
  cp /run/warm.pub "$home/.ssh/authorized_keys"
  chown -R "$user:" "$home/.ssh"
  ssh -F /dev/null -i /run/warm -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    "$user@127.0.0.1" 'sudo -n true' </dev/null || true
  rm -f /run/warm /run/warm.pub
  # Kept empty, with its owner: a fork writes its own key into it.
  : > "$home/.ssh/authorized_keys"
fi
rm -rf /var/tmp/* /tmp/*
fstrim / 2>/dev/null || true
sync
"""


@dataclass(frozen=True)
class Project:
    """A project template, in addition to its shape. `digest` covers all inputs of its preparation."""

    name: str
    digest: str
    make_disk: Callable[[Path], None]
    """Writes the disk of the template, an overlay on the image."""
    made_from: dict[str, str] = field(default_factory=dict)
    """Folder, branch, commit and tree of the repository, for `templates list`."""


@dataclass(frozen=True)
class Template:
    """A finished template, as its manifest describes it. `size` is the number of allocated bytes on the disk."""

    key: str
    kind: str
    """`base`, or `project` and the name of the profile."""
    owner: int
    image: str
    vcpus: int
    memory: int
    created_at: str
    used_at: str
    seconds: float
    size: int
    made_from: dict[str, str] = field(default_factory=dict)
    """For a project: folder, branch, commit and tree of its repository."""


def fits(plan: Plan) -> bool:
    """True if an instance of this plan can be forked. A stock image, which has its own boot loader, cannot."""
    return plan.facts.image.boot == "direct"


def find_template(home: Home, plan: Plan, image: Image, project: Project | None = None) -> TemplateFacts | None:
    """The template for a fork of this plan, or None."""
    facts = _describe(home, plan, image, project)[0]
    manifest = Path(facts.directory, "manifest.json")
    if not manifest.exists():
        return None
    with contextlib.suppress(OSError):  # the last use, for `gc`
        os.utime(manifest)
    return facts


def build_template(
    home: Home,
    plan: Plan,
    image: Image,
    libvirt: Libvirt,
    *,
    progress: Callable[[str], None],
    project: Project | None = None,
) -> TemplateFacts:
    """Boot, wait until idle, save. A concurrent call waits and uses the result."""
    facts, ingredients = _describe(home, plan, image, project)
    with locked(home.locks / f"template-{facts.key}.lock", "the template", wait=True):
        if Path(facts.directory, "manifest.json").exists():
            return facts
        began = time.monotonic()
        building = replace(facts, directory=str(home.templates / f".new-{facts.key}"))
        place = Path(building.directory)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o711)
        place.chmod(0o711)
        identity = Identity(f"template--{facts.key[:12]}")
        try:
            if project is not None:
                project.make_disk(Path(building.project))
            progress("booting a template once; later runs fork it")
            _boot_and_save(plan, building, identity, libvirt, progress)
        except BaseException:
            # `gc` removes what cannot be removed now; the first error is raised.
            with contextlib.suppress(KtrdrError):
                libvirt.stop(identity.domain)
                remove_tap(identity.tap)
            shutil.rmtree(place, ignore_errors=True)
            raise
        seconds = round(time.monotonic() - began, 1)
        manifest = {**ingredients, "key": facts.key, "created_at": now(), "seconds": seconds}
        if project is not None:
            manifest["made_from"] = project.made_from
        (place / "manifest.json").touch(mode=0o600)
        (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        # Synced before the rename, so that a finished name has its content after a power failure.
        for path in (*place.iterdir(), place):
            sync(path)
        place.rename(facts.directory)
        sync(home.templates)
        progress(f"the template was saved after {seconds:.0f} s")
    return facts


def list_templates(home: Home) -> list[Template]:
    """All finished templates of this state directory, oldest first."""
    found = []
    for path in home.templates.glob("*/manifest.json"):
        try:
            manifest = json.loads(path.read_bytes())
            size = sum(file.stat().st_blocks * 512 for file in path.parent.iterdir())
            vcpus, memory, _ = manifest["shape"]
            found.append(
                Template(
                    key=manifest["key"],
                    kind=manifest.get("kind", "base"),
                    owner=manifest["owner"],
                    image=manifest["image"],
                    vcpus=vcpus,
                    memory=memory,
                    created_at=manifest["created_at"],
                    used_at=datetime.fromtimestamp(path.stat().st_mtime, UTC)
                    .isoformat(timespec="seconds")
                    .replace("+00:00", "Z"),
                    seconds=manifest["seconds"],
                    size=size,
                    made_from=manifest.get("made_from", {}),
                )
            )
        except (ValueError, KeyError, TypeError, OSError):
            continue  # incomplete; `gc` removes it
    return sorted(found, key=lambda template: template.created_at)


def remove_template(home: Home, key: str) -> bool:
    """Remove a template; False if there was none. The caller checks that no fork uses it."""
    if len(key) != _KEY_LENGTH or not key.isalnum():
        return False
    directory = home.templates / key
    with locked(home.locks / f"template-{key}.lock", "the template", wait=True):
        if not directory.exists():
            return False
        doomed = home.templates / f".gone-{key}"
        directory.rename(doomed)
        shutil.rmtree(doomed)
    return True


def collect_templates(home: Home, users: Collection[str], *, dry_run: bool) -> list[dict[str, str]]:
    """Remove templates that no plan can use, or that were not used for UNUSED_DAYS. `users` are keys that instances
    use."""
    rows = []
    for one in list_templates(home):
        reason = _find_stale(home, one)
        if not reason or one.key in users:
            continue
        action = "would remove" if dry_run else "removed"
        if not dry_run and not remove_template(home, one.key):
            continue
        rows.append({"action": action, "instance_id": f"template {one.key}", "reason": reason})
    return rows


def _find_stale(home: Home, template: Template) -> str:
    manifest = json.loads((home.templates / template.key / "manifest.json").read_bytes())
    image = ImageStore(home.images).find(template.image)
    if image is None or image.content_digest != manifest.get("content"):
        return "its image no longer exists"
    if manifest.get("format") != FORMAT or manifest.get("settle") != _SETTLE:
        return "it was created by another version of ktrdr-vm"
    emulator = manifest.get("emulator", "")
    if emulator and (not Path(emulator).exists() or manifest.get("qemu") != _qemu_version(emulator)):
        return "it was created by another version of QEMU"
    idle = datetime.now(UTC) - datetime.fromisoformat(template.used_at)
    return f"it was not used for {idle.days} days" if idle.days >= UNUSED_DAYS else ""


def _describe(
    home: Home, plan: Plan, image: Image, project: Project | None = None
) -> tuple[TemplateFacts, dict[str, Any]]:
    """The key and its inputs. Paths and names are constant in it, so that it does not depend on them."""
    size = replace(plan.profile.resources, disk=max(plan.profile.resources.disk, 1))
    blank = TemplateFacts("", "/template")
    fixed = Identity("template")
    ingredients = {
        "format": FORMAT,
        "settle": _SETTLE,
        "image": image.digest,
        "content": image.content_digest,
        "emulator": plan.facts.emulator,
        "qemu": _qemu_version(plan.facts.emulator),
        "owner": plan.facts.owner_uid,
        "shape": [size.vcpus, size.memory, size.disk],
        "domain": render_template_domain(size, replace(plan.facts, home=str(home.root)), fixed, Allocation(), blank),
        "user_data": render_user_data(fixed, plan.facts, Allocation()),
    }
    if project is not None:
        ingredients |= {"kind": f"project {project.name}", "project": project.digest}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]
    return TemplateFacts(key, str(home.templates / key), has_project=project is not None), ingredients


def _boot_and_save(
    plan: Plan, template: TemplateFacts, identity: Identity, libvirt: Libvirt, progress: Callable[[str], None]
) -> None:
    size, place = plan.profile.resources, Path(template.directory)
    image = plan.facts.image
    final = str(place.parent / template.key)
    backing, format_ = (
        (replace(template, directory=final).project, "qcow2")
        if template.has_project
        else (image.disk, image.disk_format)
    )
    copy_boot_files(image, place)
    # By its final name, because the disk is opened under both.
    process.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format_, "-b", backing, template.disk, f"{size.disk}M"],
        timeout=60,
    )
    from ktrdr_vm.host.keys import generate_keypair

    # A temporary host key: each fork gets its own, and no login is possible before.
    host_key, host_public_key = generate_keypair()
    allocation = Allocation(
        host_key=host_key, host_public_key=host_public_key, genid="00000000-0000-4000-8000-000000000000"
    )
    user_data = render_user_data(identity, plan.facts, replace(allocation, login_public_key=""))
    seed = {
        "user-data": user_data.encode(),
        "meta-data": render_meta_data(identity).encode(),
        "network-config": render_network_config(allocation).encode(),
    }
    (place / "seed.iso").write_bytes(make_seed(seed))
    memory = Path(template.memory)
    with memory.open("wb") as file:
        file.truncate(size.memory << 20)
    owner = _qemu_user()
    os.chown(memory, owner, -1)
    memory.chmod(0o600)
    libvirt.stop(identity.domain)
    remove_tap(identity.tap)
    write_profile(libvirt, identity.uuid, make_memory_rules(template.memory, template.state, freeze=True))
    try:
        make_tap(identity.tap, identity.mark(str(place.parent.parent)))
        libvirt.start(
            identity.domain, render_template_domain(size, plan.facts, identity, allocation, template), persistent=False
        )
        try:
            with announce_wait(progress, "the VM of the template boots", BOOT_LIMIT):
                run_script(
                    libvirt, identity.domain, f"user={shlex.quote(image.user)}\n{_SETTLE}", "settle", limit=BOOT_LIMIT
                )
        except GuestError as error:
            raise _explain_failure(error, place) from None
        progress("freezes the template")
        save_state(libvirt, identity.domain, Path(template.state))
    finally:
        libvirt.stop(identity.domain)
        remove_tap(identity.tap)
        remove_profile(identity.uuid)
    set_rights(Path(template.disk), place.parent.parent)
    for name in ("seed.iso", "console.log", *BOOT_FILES):
        (place / name).unlink(missing_ok=True)


def _explain_failure(error: GuestError, place: Path) -> GuestError:
    """The error with the end of the console, which is kept: everything else of a template that failed is removed."""
    kept = place.parent / FAILED_CONSOLE
    try:
        content = (place / "console.log").read_bytes()[-_KEPT_CONSOLE:]
        # Emptied by its name first: what an earlier failure left may have other rights.
        kept.unlink(missing_ok=True)
        kept.touch(mode=0o600)
        kept.write_bytes(content)
    except OSError:
        return error
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    says = f"; its console ends with: {lines[-1][:200]!a}" if lines else "; its console is empty"
    return GuestError(
        f"{error.message}{says}",
        where=str(kept),
        hint="read the console there; `apply --cold` does without the template",
    )


def _qemu_version(emulator: str) -> str:
    return process.run([emulator, "--version"], timeout=30).text.splitlines()[0]


def _qemu_user() -> int:
    """Owner and mode of the memory file. QEMU before 8.2 opens it for writing even if a fork maps it privately."""
    try:
        return pwd.getpwnam(QEMU_USER).pw_uid
    except KeyError:
        raise HostError(
            f"the user {QEMU_USER} does not exist",
            where="libvirt",
            hint="install libvirt-daemon-system, or run `make setup`",
        ) from None
