"""Templates: boot once, freeze, fork many. What a template is, when it fits, and how one is made.

A template holds no profile data: no NIC, no secret, no workspace, no login. It belongs to one owner and one image, and its key says
everything that a fork must share with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.fork import save_state
from ktrdr_vm.host.journal import locked
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image
from ktrdr_vm.plan.cloud_init import render_meta_data, render_user_data
from ktrdr_vm.plan.domain_xml import render_template_domain
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.identity import Identity
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.resources.seed import make_seed

# Raised when what is done to a guest before the freeze changes.
FORMAT = 1
BOOT_LIMIT = 600.0
QEMU_USER = "libvirt-qemu"
_KEY_LENGTH = 32

# Everything that starts late is started, and each preloaded container image has run once, so that its pages are warm.
_SETTLE = """set -e
! command -v cloud-init >/dev/null || cloud-init status --wait >/dev/null || true
if command -v dockerd >/dev/null; then
  systemctl start docker.service
  for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}'); do
    docker run --rm --network none "$image" true >/dev/null || true
  done
fi
rm -rf /var/tmp/* /tmp/*
fstrim / 2>/dev/null || true
sync
"""


@dataclass(frozen=True)
class Template:
    """A finished template, as its manifest describes it. `size` counts the bytes that are really on the disk."""

    key: str
    owner: int
    image: str
    vcpus: int
    memory: int
    created_at: str
    seconds: float
    size: int


def fits(plan: Plan) -> bool:
    """Can this plan be forked? virtiofs needs memory that is shared with its daemon, and a stock image brings its own boot."""
    return not plan.profile.mounts and plan.facts.image.boot == "direct"


def find_template(home: Home, plan: Plan, image: Image) -> TemplateFacts | None:
    """The template that a fork of this plan must come from, if it is there."""
    facts = _describe(home, plan, image)[0]
    return facts if Path(facts.directory, "manifest.json").exists() else None


def build_template(home: Home, plan: Plan, image: Image, libvirt: Libvirt, *, progress: Callable[[str], None]) -> TemplateFacts:
    """Boot, settle, freeze. Whoever comes second waits for the first and takes the result."""
    facts, ingredients = _describe(home, plan, image)
    with locked(home.locks / f"template-{facts.key}.lock", "the template", wait=True):
        if Path(facts.directory, "manifest.json").exists():
            return facts
        progress("boots a template once; later runs fork it")
        began = time.monotonic()
        building = replace(facts, directory=str(home.templates / f".new-{facts.key}"))
        place = Path(building.directory)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o711)
        place.chmod(0o711)
        identity = Identity(f"template--{facts.key[:12]}")
        try:
            _boot_and_freeze(plan, building, identity, libvirt, progress)
        except BaseException:
            # What cannot be ended now, `gc` ends; the first error is the one that matters.
            with contextlib.suppress(KtrdrError):
                libvirt.stop(identity.domain)
            shutil.rmtree(place, ignore_errors=True)
            raise
        seconds = round(time.monotonic() - began, 1)
        manifest = {**ingredients, "key": facts.key, "created_at": now(), "seconds": seconds}
        (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        place.rename(facts.directory)
        progress(f"the template is frozen after {seconds:.0f} s")
    return facts


def list_templates(home: Home) -> list[Template]:
    """Every finished template of this home, oldest first."""
    found = []
    for path in home.templates.glob("*/manifest.json"):
        try:
            manifest = json.loads(path.read_bytes())
            size = sum(file.stat().st_blocks * 512 for file in path.parent.iterdir())
            image, shape = manifest["image"], manifest["shape"]
            found.append(
                Template(manifest["key"], manifest["owner"], image, shape[0], shape[1], manifest["created_at"], manifest["seconds"], size)
            )
        except (ValueError, KeyError, OSError):
            continue  # half of one, which `gc` takes away
    return sorted(found, key=lambda template: template.created_at)


def remove_template(home: Home, key: str) -> bool:
    """Take a template away; False when there was none. Forks that stand on it must be gone: the caller knows them."""
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


def _describe(home: Home, plan: Plan, image: Image) -> tuple[TemplateFacts, dict[str, Any]]:
    """The key and what it is made of. Paths and names are fixed in it, so that it depends on nothing else."""
    size = replace(plan.profile.resources, disk=max(plan.profile.resources.disk, 1))
    blank = TemplateFacts("", "/template")
    fixed = Identity("template")
    ingredients = {
        "format": FORMAT,
        "settle": _SETTLE,
        "image": image.digest,
        "content": image.content_digest,
        "qemu": _qemu_version(plan.facts.emulator),
        "owner": plan.facts.owner_uid,
        "shape": [size.vcpus, size.memory, size.disk],
        "domain": render_template_domain(size, replace(plan.facts, home=str(home.root)), fixed, Allocation(), blank),
        "user_data": render_user_data(fixed, plan.facts, Allocation()),
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]
    return TemplateFacts(key, str(home.templates / key)), ingredients


def _boot_and_freeze(plan: Plan, template: TemplateFacts, identity: Identity, libvirt: Libvirt, progress: Callable[[str], None]) -> None:
    size, place = plan.profile.resources, Path(template.directory)
    image = plan.facts.image
    process.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.disk_format, "-b", image.disk, template.disk, f"{size.disk}M"], timeout=60
    )
    from ktrdr_vm.guest.keys import generate_keypair

    # A host key that is thrown away: no fork keeps it, and nobody can log in with anything before a fork is given its own.
    host_key, host_public_key = generate_keypair()
    allocation = Allocation(host_key=host_key, host_public_key=host_public_key, genid="00000000-0000-4000-8000-000000000000")
    user_data = render_user_data(identity, plan.facts, replace(allocation, login_public_key=""))
    seed = {
        "user-data": user_data.encode(),
        "meta-data": render_meta_data(identity).encode(),
        "network-config": b"version: 2\nethernets: {}\n",
    }
    (place / "seed.iso").write_bytes(make_seed(seed))
    memory = Path(template.memory)
    with memory.open("wb") as file:
        file.truncate(size.memory << 20)
    owner = _qemu_user()
    os.chown(memory, owner, -1)
    memory.chmod(0o600)
    libvirt.stop(identity.domain)
    libvirt.start(identity.domain, render_template_domain(size, plan.facts, identity, allocation, template), persistent=False)
    run_script(libvirt, identity.domain, _SETTLE, "settle", limit=BOOT_LIMIT)
    progress("freezes the template")
    save_state(libvirt, identity.domain, Path(template.state))
    libvirt.stop(identity.domain)
    Path(template.disk).chmod(0o444)
    for name in ("seed.iso", "console.log"):
        (place / name).unlink(missing_ok=True)


def _qemu_version(emulator: str) -> str:
    return process.run([emulator, "--version"], timeout=30).text.splitlines()[0]


def _qemu_user() -> int:
    """Who opens the memory's file. QEMU before 8.2 opens it for writing even when a fork maps it privately."""
    try:
        return pwd.getpwnam(QEMU_USER).pw_uid
    except KeyError:
        raise HostError(
            f"there is no user {QEMU_USER}", where="libvirt", hint="install libvirt-daemon-system, or run `make setup`"
        ) from None
