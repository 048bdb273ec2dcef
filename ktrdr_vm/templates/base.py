"""Building a template: a VM that is booted and saved once, and forked many times.

A template contains no data of a profile: no secret, no workspace, no login. Its NIC has the address that every instance
has, and its tap is down. It belongs to one owner and one image, and its key contains everything that a fork must share
with it. That of a project is based on the disk of the prepared project.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ktrdr_vm.errors import GuestError, HostError, KtrdrError, VmEndedError
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
from ktrdr_vm.images.store import Image
from ktrdr_vm.instance.resources.overlay import BOOT_FILES, copy_boot_files
from ktrdr_vm.instance.resources.seed import make_seed
from ktrdr_vm.instance.resources.tap import make_tap, remove_tap
from ktrdr_vm.plan.cloud_init import render_meta_data, render_network_config, render_user_data
from ktrdr_vm.plan.domain_xml import render_template_domain
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.templates.key import SETTLE, Project, describe_template

BOOT_LIMIT = 600.0
# In the folder of the templates: the console of the last one that could not be made.
FAILED_CONSOLE = "failed-console.log"
_KEPT_CONSOLE = 1 << 20
QEMU_USER = "libvirt-qemu"


def build_template(
    home: Home,
    plan: Plan,
    image: Image,
    libvirt: Libvirt,
    *,
    progress: Callable[[str], None],
    project: Project | None = None,
) -> TemplateFacts:
    """Boot, wait until idle, save. A concurrent call waits and uses the result.

    A VM that ends by itself is booted once more: an emulating QEMU crashes at times.
    """
    facts, ingredients = describe_template(home, plan, image, project)
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
            try:
                _boot_and_save(plan, building, identity, libvirt, progress)
            except VmEndedError as error:
                progress(f"{error.message}; the template is booted once more")
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
                    libvirt, identity.domain, f"user={shlex.quote(image.user)}\n{SETTLE}", "settle", limit=BOOT_LIMIT
                )
        except GuestError as error:
            raise _explain_failure(error, place) from None
        progress("freezes the template")
        save_state(libvirt, identity.domain, Path(template.state))
    finally:
        libvirt.stop(identity.domain)
        remove_tap(identity.tap)
        remove_profile(identity.uuid)
    home = place.parent.parent
    set_rights(Path(template.disk), home)
    if template.readonly:
        # The user of QEMU made it, and forks only read it.
        os.chown(memory, os.geteuid(), -1)
        set_rights(memory, home)
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
    return type(error)(
        f"{error.message}{says}",
        where=str(kept),
        hint="read the console there; `apply --cold` does without the template",
    )


def _qemu_user() -> int:
    """The owner of the memory while the template runs, and later as well if forks open it for writing."""
    try:
        return pwd.getpwnam(QEMU_USER).pw_uid
    except KeyError:
        raise HostError(
            f"the user {QEMU_USER} does not exist",
            where="libvirt",
            hint="install libvirt-daemon-system, or run `make setup`",
        ) from None
