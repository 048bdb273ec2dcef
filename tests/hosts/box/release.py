"""What a host of each Debian release is made of, and the digest that names what was made."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.recipe import load_recipe

# Where boxes are kept: a few GiB for each release, and as much again while one runs.
HOSTS_HOME = Path(os.environ.get("KTRDR_VM_HOSTS_HOME") or "/var/lib/ktrdr-vm-hosts")
RECIPE = PROJECT / "images" / "debian-13-docker.yaml"

# What makes a Debian of it, as the installer does.
_SYSTEM = """
linux-image-cloud-amd64 initramfs-tools systemd-sysv udev kmod dbus libpam-systemd procps openssh-server ca-certificates sudo
apparmor apparmor-utils make curl
""".split()
# Of variants; none of them runs until its variant starts it.
_VARIANTS = "docker.io iptables ufw firewalld systemd-resolved".split()
DORMANT = (
    "docker.service docker.socket containerd.service ufw.service firewalld.service systemd-resolved.service".split()
)

# What scripts/environment makes the virtual environment from.
ENVIRONMENT = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts/environment")
_TEXTS = ("README.md", "LICENSE")
_MAKERS = ("internet.py", "release.py", "root.py")


@dataclass(frozen=True)
class Release:
    """A Debian release: its name at mirrors, the version, and packages that only this one has."""

    codename: str
    version: str
    only: tuple[str, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        lists = (PROJECT / "ktrdr_vm/host/packages.txt", PROJECT / "scripts/packages.txt")
        listed = (line.split()[0] for path in lists for line in path.read_text().splitlines() if line)
        return tuple(sorted({*_SYSTEM, *_VARIANTS, *self.only, *(name for name in listed if name != "#")}))

    @property
    def digest(self) -> str:
        """Of all that a box depends on; the checkout is copied into the running one, and is no part of it."""
        found = hashlib.sha256(" ".join((self.codename, *self.packages, platform.machine())).encode())
        for path in (
            *(PROJECT / name for name in ENVIRONMENT if name not in _TEXTS),
            *(Path(__file__).with_name(name) for name in _MAKERS),
        ):
            found.update(path.read_bytes())
        found.update(load_recipe(RECIPE).digest.encode())
        return found.hexdigest()[:16]

    @property
    def directory(self) -> Path:
        return HOSTS_HOME / f"{self.codename}-{self.digest}"


RELEASES = {one.codename: one for one in (Release("bookworm", "12"), Release("trixie", "13", ("virtiofsd",)))}
