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

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from laboratory.lab import LAB_HOME

from bench.peers.install import PLACES
from ktrdr_vm.images.apt import read_apt_host
from ktrdr_vm.images.bootstrap import make_mmdebstrap_argv
from ktrdr_vm.images.store import Image
from ktrdr_vm.plan.domain_xml import make_kernel_arguments

# Where QEMU's own user can reach it, which a checkout need not be.
FOLDER = LAB_HOME / "bench-images"
SUITE = "trixie"
# What a published Debian cloud image is made of, and Docker. curl is what the prober asks Docker with. No ifupdown:
# with it there, cloud-init would configure the network through it, and networkd's wait-online would wait its two
# minutes for nothing.
PACKAGES = (
    "apparmor",
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "cron",
    "curl",
    "dbus",
    "docker-cli",
    "docker.io",
    "e2fsprogs",
    "grub-pc-bin",
    "init",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "libnss-resolve",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "logrotate",
    "netplan.io",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd-resolved",
    "systemd-timesyncd",
    "tzdata",
    "udev",
    "unattended-upgrades",
    "vim-tiny",
    "zstd",
)
SIZE = 4 << 30
# Where the first partition begins; the boot loader lies in front of it.
START = 1 << 20
_SECTOR = 512
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "echo")
_LABEL = "stock"
_STOCK_ARGUMENTS = f"root=LABEL={_LABEL} ro console=tty0 console=ttyS0,115200"


@dataclass(frozen=True)
class Forms:
    """One image as each tool wants it. `tree`: ext4 without partitions, kernel and initrd inside. `disk`: qcow2 that
    boots by itself."""

    tree: Path
    disk: Path


def find_forms(image: Image, *, stock: bool) -> Forms:
    folder = FOLDER / (_name_stock() if stock else image.digest)
    return Forms(folder / "tree.raw", folder / "disk.qcow2")


def _name_stock() -> str:
    """By what it is made of: another list of packages is another image."""
    return f"stock-{hashlib.sha256(repr((SUITE, PACKAGES, SIZE, _STOCK_ARGUMENTS)).encode()).hexdigest()[:12]}"


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
            _make_stock(partial)
            arguments = _STOCK_ARGUMENTS
        else:
            _make_ours(image, partial)
            # A partition has another name than the whole disk; everything else is as it is.
            facts: Any = SimpleNamespace(image=image, accelerator=accelerator)
            arguments = make_kernel_arguments(facts).replace("root=/dev/vda", "root=/dev/vda1")
        _add_boot_loader(partial, arguments, stock=stock)
        for file in partial.iterdir():
            file.chmod(0o644)
        partial.rename(forms.tree.parent)


def _make_ours(image: Image, folder: Path) -> None:
    assert image.kernel is not None and image.initrd is not None
    tree = folder / "tree.raw"
    _copy(image.disk, tree)
    commands = [
        f"write {image.kernel} /boot/kernel", f"write {image.initrd} /boot/initrd",
        "symlink /vmlinuz boot/kernel", "symlink /initrd.img boot/initrd",
    ]  # fmt: skip
    _edit(tree, commands)


def _make_stock(folder: Path) -> None:
    root, tree = folder / "root", folder / "tree.raw"
    argv = make_mmdebstrap_argv(
        read_apt_host(), SUITE, root, variant="minbase", security=True, packages=PACKAGES, exclude=()
    )
    _run(argv, env={**os.environ, "TMPDIR": str(folder)})
    (root / "etc/fstab").write_text(f"LABEL={_LABEL} / ext4 defaults 0 1\n")
    (root / "etc/hostname").write_text("stock\n")
    (root / "etc/machine-id").write_text("uninitialized\n")
    for pattern in (
        "etc/ssh/ssh_host_*",
        "var/cache/apt/archives/*.deb",
        "var/lib/apt/lists/*_*",
        "etc/apt/apt.conf.d/99mmdebstrap",
    ):
        for place in root.glob(pattern):
            place.unlink()
    with tree.open("xb") as file:
        file.truncate(SIZE)
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", _LABEL, "-d", root, tree])
    kernel, initrd = (next((root / "boot").glob(pattern)).name for pattern in ("vmlinuz-*", "initrd.img-*"))
    _edit(tree, [f"ln /boot/{kernel} /boot/kernel", f"ln /boot/{initrd} /boot/initrd"])
    shutil.rmtree(root)


def _add_boot_loader(folder: Path, arguments: str, *, stock: bool) -> None:
    """One partition with the tree, and GRUB for BIOS in front of it: its first sector, and its core behind that one."""
    tree, raw, tools = folder / "tree.raw", folder / "disk.raw", PLACES / "tools"
    with raw.open("xb") as file:
        file.truncate(START + tree.stat().st_size)
    _run(["sfdisk", "--quiet", raw], stdin=f"label: dos\nstart={START // _SECTOR}, type=83, bootable\n")
    _run(["dd", f"if={tree}", f"of={raw}", "bs=1M", f"seek={START >> 20}", "conv=sparse,notrunc", "status=none"])
    config = tools / "tmp/grub.cfg"
    config.write_text(f"set root=(hd0,msdos1)\nlinux /boot/kernel {arguments}\ninitrd /boot/initrd\nboot\n")
    modules = "/usr/lib/grub/i386-pc"
    _run(
        [
            "chroot",
            tools,
            "grub-mkimage",
            "-O",
            "i386-pc",
            "-d",
            modules,
            "-c",
            "/tmp/grub.cfg",
            "-p",
            "/",
            "-o",
            "/tmp/core",
            *_MODULES,
        ]
    )
    core, first = (tools / "tmp/core").read_bytes(), (tools / modules.lstrip("/") / "boot.img").read_bytes()
    assert len(core) + _SECTOR <= START
    with raw.open("r+b") as file:
        # Behind 440 bytes is the partition table. The loader's own default is that the core begins in the second
        # sector.
        file.write(first[:440])
        file.seek(_SECTOR)
        file.write(core)
    if not stock:
        fstab = folder / "fstab"
        offset = f"{raw}?offset={START}"
        content = _run(["debugfs", "-R", "cat /etc/fstab", offset])
        assert "/dev/vda " in content
        fstab.write_text(content.replace("/dev/vda ", "/dev/vda1 "))
        _edit(Path(offset), ["rm /etc/fstab", f"write {fstab} /etc/fstab"])
        fstab.unlink()
    _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2"])
    raw.unlink()


def _edit(tree: Path, commands: list[str]) -> None:
    """debugfs ends well whatever happens, so what it says is read."""
    said = subprocess.run(
        ["debugfs", "-w", "-f", "-", tree], input="\n".join(commands), text=True, capture_output=True, check=True
    )
    wrong = [line for line in said.stderr.splitlines() if line and not line.startswith("debugfs ")]
    if wrong:
        raise RuntimeError(f"debugfs: {'; '.join(wrong)}")


def _copy(source: Path, target: Path) -> None:
    _run(["cp", "--sparse=always", "--reflink=auto", source, target])


def _run(argv: list[object] | tuple[str, ...], *, stdin: str = "", env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in argv], input=stdin, text=True, capture_output=True, env=env, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv[:3]))}: {done.stderr.strip()[-500:]}")
    return done.stdout
