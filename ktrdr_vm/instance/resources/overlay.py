"""The disk: a qcow2 overlay on the image, so that an image serves any number of instances and is never written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.instance.resources.base import Resource
from ktrdr_vm.plan.facts import ImageFacts

# Seconds to copy what was written since the image, on a slow disk.
COPY_LIMIT = 1800.0


BOOT_FILES = ("vmlinuz", "initrd")


def copy_boot_files(image: ImageFacts, directory: Path) -> None:
    """Copy kernel and initrd beside the disk for a direct boot. libvirt gives the boot files of a VM to QEMU's user
    while it runs.

    Those of the image would then be writable by a process that broke out of one QEMU, and every later VM would boot
    from them.
    """
    if image.boot != "direct":
        return
    for name in BOOT_FILES:
        copy = directory / name
        if not copy.exists():
            partial = directory / f".{name}.partial"
            shutil.copyfile(Path(image.directory, name), partial)
            partial.chmod(0o444)
            partial.rename(copy)


class Overlay(Resource):
    kind = "overlay"
    survives_suspend = True
    lane = "disk"

    @property
    def name(self) -> str:
        return str(self.target.paths.overlay)

    def exists(self) -> bool:
        return self.target.paths.overlay.exists()

    def create(self) -> None:
        plan = self.blueprint.plan
        copy_boot_files(plan.facts.image, self.target.paths.directory)
        backing, backing_format = self._backing()
        path = self.target.paths.overlay
        if path.exists() and plan.profile.mode == "interactive":
            # It holds somebody's work: a changed image or size is no reason to empty it.
            differences = self.verify()
            if differences:
                raise ProvisionError(
                    f"the disk of this instance is not the one that the profile asks for now: {'; '.join(differences)}",
                    where=self.name,
                    hint="save its data and destroy the instance, or undo the change of image or disk",
                )
            return
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        if self.blueprint.disk:
            process.run(["cp", "--reflink=auto", "--sparse=always", self.blueprint.disk, partial], timeout=COPY_LIMIT)
            partial.chmod(0o600)
            partial.rename(path)
            return
        size = f"{plan.profile.resources.disk}M"
        process.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", backing, partial, size], timeout=60
        )
        partial.chmod(0o600)
        partial.rename(path)

    def verify(self) -> list[str]:
        backing, backing_format = self._backing()
        # -U: a running VM holds the lock of its own disk.
        shown = process.run(
            ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", self.target.paths.overlay], timeout=60
        )
        info = json.loads(shown.stdout)
        wanted = self.blueprint.plan.profile.resources.disk * 1024 * 1024
        differences = []
        if info.get("backing-filename") != backing or info.get("backing-filename-format") != backing_format:
            differences.append(f"backed by {info.get('backing-filename')}, not {backing}")
        if not Path(backing).exists():
            # QEMU has it open, so a running VM continues; it cannot be started again.
            differences.append(f"its backing file is missing: {backing}")
        if info.get("virtual-size") != wanted:
            differences.append(f"{info.get('virtual-size')} bytes, not {wanted}")
        return differences

    def _backing(self) -> tuple[str, str]:
        """The backing file of the overlay, and its format."""
        template, image = self.blueprint.template, self.blueprint.plan.facts.image
        return (template.disk, "qcow2") if template else (image.disk, image.disk_format)

    def remove(self) -> None:
        self.target.paths.overlay.unlink(missing_ok=True)
        self.target.paths.overlay.with_suffix(".partial").unlink(missing_ok=True)
        for name in BOOT_FILES:
            (self.target.paths.directory / name).unlink(missing_ok=True)

    def by_hand(self) -> str:
        return f"rm {self.target.paths.overlay}"
