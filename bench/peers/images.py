"""What the peers boot: our image in the forms that they take, and a stand-in for a stock cloud image. Made once, kept
for the next run.

Ours is always the same root file system. A tool that takes kernel and initrd out of it finds them inside; one that asks
the machine's firmware finds a boot loader in front of it, which starts the same kernel and initrd with the same
arguments.

The stock image is Debian's own packages as they come: the distribution's initrd, cloud-init unmodified, GRUB, Docker
enabled by its package. Nothing in it is chosen for speed, and nothing is added that a published cloud image would not
have.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from laboratory import stock as laboratory_stock
from laboratory.lab import LAB_HOME
from laboratory.stock import build_disk, edit, make_bootable, run

from bench.peers.install import PLACES
from ktrdr_vm.images.store import Image
from ktrdr_vm.plan.domain_xml import make_kernel_arguments

# Where QEMU's own user can reach it, which a checkout need not be.
FOLDER = LAB_HOME / "bench-images"
# The lab's stand-in for Debian's image, and Docker. The prober asks Docker with curl.
STOCK = replace(
    laboratory_stock.DEBIAN,
    name="bench",
    packages=(*laboratory_stock.DEBIAN.packages, "docker-cli", "docker.io"),
    label="stock",
)


@dataclass(frozen=True)
class Forms:
    """One image as each tool wants it. `tree`: ext4 without partitions, kernel and initrd inside. `disk`: qcow2 that
    boots by itself."""

    tree: Path
    disk: Path


def find_forms(image: Image, *, stock: bool) -> Forms:
    folder = FOLDER / (f"stock-{STOCK.digest[:12]}" if stock else image.digest)
    return Forms(folder / "tree.raw", folder / "disk.qcow2")


def make_forms(image: Image, accelerator: str) -> None:
    """All of them, those of earlier images removed. Outside of the lab's namespaces, which have no mirror."""
    FOLDER.mkdir(mode=0o711, parents=True, exist_ok=True)
    wanted = {stock: find_forms(image, stock=stock) for stock in (False, True)}
    for place in FOLDER.iterdir():
        if place not in [forms.tree.parent for forms in wanted.values()]:
            shutil.rmtree(place)
    for stock, forms in wanted.items():
        if forms.tree.parent.exists():
            continue
        partial = FOLDER / f".new-{'stock' if stock else 'ours'}"
        partial.mkdir(mode=0o711)
        if stock:
            build_disk(STOCK, partial)
        else:
            _make_ours(image, partial, accelerator)
        for file in partial.iterdir():
            file.chmod(0o644)
        partial.rename(forms.tree.parent)


def _make_ours(image: Image, folder: Path, accelerator: str) -> None:
    assert image.kernel is not None and image.initrd is not None
    tree = folder / "tree.raw"
    run(["cp", "--sparse=always", "--reflink=auto", image.disk, tree])
    commands = [
        f"write {image.kernel} /boot/kernel", f"write {image.initrd} /boot/initrd",
        "symlink /vmlinuz boot/kernel", "symlink /initrd.img boot/initrd",
    ]  # fmt: skip
    edit(tree, commands)
    # A partition has another name than the whole disk; everything else is as it is.
    facts: Any = SimpleNamespace(image=image, accelerator=accelerator)
    arguments = make_kernel_arguments(facts).replace("root=/dev/vda", "root=/dev/vda1")
    make_bootable(tree, folder / "disk.qcow2", arguments, tools=PLACES / "tools", edit_raw=_name_partition)


def _name_partition(partition: Path) -> None:
    content = run(["debugfs", "-R", "cat /etc/fstab", partition])
    assert "/dev/vda " in content
    fstab = FOLDER / ".new-fstab"
    fstab.write_text(content.replace("/dev/vda ", "/dev/vda1 "))
    edit(partition, ["rm /etc/fstab", f"write {fstab} /etc/fstab"])
    fstab.unlink()
