"""Configuring a bootstrapped root as a guest: files, units, the user, and the removal of data that must differ between
instances."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.images.apt import AptHost
from ktrdr_vm.images.recipe import GuestFile, Recipe

_UID = 1000
_GUEST_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Files of a build that instances must not share or contain: keys, identities, caches, logs, settings of apt.
_STRIPPED = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/0000main.list",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/cloud/*",
    "var/lib/dbus/machine-id",
    "var/lib/docker/engine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/log/*.log",
    "var/log/apt/*",
    "var/log/journal",
    "boot/*",
    "initrd.img*",
    "vmlinuz*",
    "tmp/*",
    "run/*",
)


def write_files(root: Path, files: Sequence[GuestFile]) -> None:
    """Copy the files of the recipe into the root. 0644 and root meet the requirements of sudo and sshd."""
    for file in files:
        place = find_beneath(root, file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.write_bytes(file.content)
        place.chmod(0o755 if file.executable else 0o644)


def find_beneath(root: Path, relative: str) -> Path:
    """A path in the root, refused if a link in it leads out: an absolute link would lead to the host."""
    place = root / relative
    if ".." in Path(relative).parts or not place.parent.resolve().is_relative_to(root.resolve()):
        raise ProvisionError(
            f"{relative} leads out of the root of the image", hint="name the real directory in the recipe"
        )
    return place


def configure_units(root: Path, recipe: Recipe) -> None:
    for unit in recipe.mask:
        _link_to_null(root, f"etc/systemd/system/{unit}")
    for generator in recipe.mask_generators:
        _link_to_null(root, f"etc/systemd/system-generators/{generator}")
    if recipe.enable:
        process.run(["chroot", root, "systemctl", "--quiet", "enable", *recipe.enable], timeout=60)


def _link_to_null(root: Path, relative: str) -> None:
    place = find_beneath(root, relative)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to("/dev/null")


def create_user(root: Path, user: str, groups: Sequence[str]) -> None:
    """Create an account without a password, and lock root: login requires a key."""
    process.run(
        ["chroot", root, "useradd", "--create-home", "--user-group", "--uid", str(_UID), "--shell", "/bin/bash",
         *(("--groups", ",".join(groups)) if groups else ()), user],
        timeout=60,
    )  # fmt: skip
    # `*` disables passwords; sshd would treat `!` as a locked account and refuse keys too.
    process.run(["chroot", root, "usermod", "--password", "*", user], timeout=60)
    process.run(["chroot", root, "passwd", "--quiet", "--lock", "root"], timeout=60)


def unpack_modules(root: Path, version: str) -> None:
    """Store the kernel's modules uncompressed: under emulation, unpacking them is most of the time to load them."""
    for packed in (root / "usr/lib/modules" / version).rglob("*.ko.[xg]z"):
        content = packed.read_bytes()
        packed.with_suffix("").write_bytes(
            lzma.decompress(content) if packed.suffix == ".xz" else gzip.decompress(content)
        )
        packed.unlink()
    process.run(["chroot", root, "depmod", version], timeout=120)


def strip(root: Path, host: AptHost, recipe: Recipe) -> None:
    """Remove everything that is specific to this build, to this host or to one instance."""
    for pattern in _STRIPPED:
        for place in root.glob(pattern):
            _delete(place)
    for place in (root / "var/log").rglob("*"):
        if place.is_file():
            place.unlink()
    # Empty: created at every first boot. "uninitialized" would also apply presets, which enable units that are disabled
    # here.
    _write(root, "etc/machine-id", "", 0o444)
    _write(root, "etc/hostname", "ktrdr\n")
    _write(root, "etc/hosts", "127.0.0.1 localhost\n")
    _write(root, "etc/resolv.conf", "")
    _write(root, "etc/apt/sources.list.d/debian.sources", make_guest_sources(host, recipe))
    _mark_updated(root)


def make_guest_sources(host: AptHost, recipe: Recipe) -> str:
    """Configure apt in the guest for the archive of the host, without a password of the host. Egress must allow it."""
    stanzas = [(host.main.public_uri, recipe.suite)]
    if recipe.security and host.security is not None:
        stanzas.append((host.security.public_uri, f"{recipe.suite}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {_GUEST_KEYRING}\n"
        for uri, suite in stanzas
    )


def _mark_updated(root: Path) -> None:
    """Tell systemd that /etc and /var fit this /usr, or the first boot rebuilds caches
    (systemd-update-done.service)."""
    stamp = (root / "usr").stat()
    for relative in ("etc/.updated", "var/.updated"):
        _write(root, relative, "# the image is complete\n")
        os.utime(root / relative, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))


def _write(root: Path, relative: str, content: str, mode: int = 0o644) -> None:
    place = find_beneath(root, relative)
    if place.is_symlink() or place.exists():
        place.unlink()
    place.write_text(content, encoding="utf-8")
    place.chmod(mode)


def _delete(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
