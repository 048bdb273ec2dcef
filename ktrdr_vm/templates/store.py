"""The store of templates: finished ones are found, listed, removed, and collected when no fork can use them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ktrdr_vm.host.journal import list_unreadable, locked
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image, ImageStore
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.templates.key import FORMAT, KEY_LENGTH, SETTLE, Project, describe_template, read_qemu_version

# A template that nobody has forked for so long is collected.
UNUSED_DAYS = 14


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
    disk: int
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
    facts = describe_template(home, plan, image, project)[0]
    manifest = Path(facts.directory, "manifest.json")
    if not manifest.exists():
        return None
    with contextlib.suppress(OSError):  # the last use, for `gc`
        os.utime(manifest)
    return facts


def list_templates(home: Home) -> list[Template]:
    """All finished templates of this state directory, oldest first."""
    found = []
    # Names with a dot are of templates that are being built or removed.
    for path in home.templates.glob("[!.]*/manifest.json"):
        try:
            manifest = json.loads(path.read_bytes())
            size = sum(file.stat().st_blocks * 512 for file in path.parent.iterdir())
            vcpus, memory, disk = manifest["shape"]
            found.append(
                Template(
                    key=manifest["key"],
                    kind=manifest.get("kind", "base"),
                    owner=manifest["owner"],
                    image=manifest["image"],
                    vcpus=vcpus,
                    memory=memory,
                    disk=disk,
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
    if len(key) != KEY_LENGTH or not key.isalnum():
        return False
    directory = home.templates / key
    with locked(home.locks / f"template-{key}.lock", "the template", wait=True):
        if not directory.exists():
            return False
        # A name of its own: that of a killed removal may still exist.
        doomed = home.templates / f".gone-{key}-{os.getpid()}"
        directory.rename(doomed)
        shutil.rmtree(doomed)
    return True


def collect_templates(home: Home, users: Collection[str], *, dry_run: bool) -> list[dict[str, str]]:
    """Remove templates that no plan can use, or that were not used for UNUSED_DAYS. `users` are keys that instances
    use.

    None is removed while an instance has a journal that cannot be read: nobody can tell what it uses. The row of each
    that would have been says so."""
    unreadable, rows = list_unreadable(home), []
    for one in list_templates(home):
        action = "would remove" if dry_run else "removed"
        try:
            reason = _find_stale(home, one)
            if not reason or one.key in users:
                continue
            if unreadable:
                action = "kept"
                reason = f"the journals of these instances cannot be read, and they may use it: {', '.join(unreadable)}"
            elif not dry_run and not remove_template(home, one.key):
                continue
        except FileNotFoundError:
            continue  # another process removed it
        except OSError as error:
            action, reason = "failed", f"{error.filename or one.key}: {error.strerror}; next: remove it by hand"
        rows.append({"action": action, "instance_id": f"template {one.key}", "reason": reason})
    return rows


def _find_stale(home: Home, template: Template) -> str:
    manifest = json.loads((home.templates / template.key / "manifest.json").read_bytes())
    image = ImageStore(home.images).find(template.image)
    if image is None or image.content_digest != manifest.get("content"):
        return "its image no longer exists"
    if manifest.get("format") != FORMAT or manifest.get("settle") != SETTLE:
        return "it was created by another version of ktrdr-vm"
    emulator = manifest.get("emulator", "")
    if emulator and (not Path(emulator).exists() or manifest.get("qemu") != read_qemu_version(home, emulator)):
        return "it was created by another version of QEMU"
    idle = datetime.now(UTC) - datetime.fromisoformat(template.used_at)
    return f"it was not used for {idle.days} days" if idle.days >= UNUSED_DAYS else ""
