"""Who may open what in the state directory: one table, by which names are made and looked at.

What is copied or bound there never has weaker rights than what it came from. Who may pass through a folder may open nothing in it that
is not listed for them.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import stat
from dataclasses import dataclass
from pathlib import Path

QEMU_USER = "libvirt-qemu"


@dataclass(frozen=True)
class Right:
    """`pattern` is beneath the state directory; `mode` the most that there may be. `group`: QEMU's, the proxy's, or root's own."""

    pattern: str
    mode: int
    group: str = ""


# The first that fits counts; what fits none is its owner's alone.
TABLE = (
    Right(".", 0o711),
    *(Right(name, 0o711) for name in ("images", "templates", "instances", "runs")),
    # Images are what their recipes made of public packages: QEMU reads them, whoever runs it.
    Right("images/*", 0o755),
    Right("templates/*/*.qcow2", 0o440, "qemu"),
    Right("templates/*/*", 0o600),
    Right("templates/*", 0o711),
    Right("instances/*/mounts", 0o700),
    Right("instances/*/mounts/*", 0o7777),  # what is bound there has its own rights, behind a closed folder
    Right("instances/*/vmlinuz", 0o444),
    Right("instances/*/initrd", 0o444),
    Right("instances/*/guard/proxy.cfg", 0o440, "proxy"),
    *(Right(f"instances/*/guard/*.{kind}", 0o440, "proxy") for kind in ("names", "suffixes", "granted", "granted_suffixes")),
    *(Right(f"instances/*/guard/{name}", 0o440, "proxy") for name in ("given.addresses", "broker.values", "broker.open")),
    Right("instances/*/guard", 0o711),
    Right("instances/*/*/*", 0o700),
    Right("instances/*", 0o711),
    Right("runs/*", 0o711),
)


def find_right(path: Path, home: Path) -> Right:
    """The entry for a name of the state directory."""
    relative = str(path.relative_to(home))
    depth = relative.count("/")
    for right in TABLE:
        if right.pattern.count("/") == depth and fnmatch.fnmatchcase(relative, right.pattern):
            return right
    return Right(relative, 0o700)


def set_rights(path: Path, home: Path, *, group: int = -1) -> None:
    """Give a name that was made the rights of the table. `group` is the proxy's, for what it reads."""
    right = find_right(path, home)
    wanted = _find_qemu_group() if right.group == "qemu" else group if right.group == "proxy" else -1
    if os.geteuid() == 0 and wanted >= 0:
        os.chown(path, -1, wanted, follow_symlinks=False)
    path.chmod(right.mode)


def make_private(*folders: Path) -> None:
    """Make folders, outermost first, that are their owner's alone. `mkdir(mode, parents=True)` gives the upper ones the umask's mode."""
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def find_open(home: Path, beneath: Path | None = None) -> list[str]:
    """Names that others than the table says may open, each with its mode. Links are not followed, and binds not entered."""
    found = []
    for folder, folders, files in os.walk(beneath or home):
        here = Path(folder)
        if here.name == "mounts":
            folders.clear()
        for path in (here, *(here / name for name in files)):
            facts = path.lstat()
            if stat.S_ISLNK(facts.st_mode) or stat.S_ISSOCK(facts.st_mode):
                continue
            wider = stat.S_IMODE(facts.st_mode) & 0o077 & ~find_right(path, home).mode
            if wider:
                found.append(f"{path}: {stat.S_IMODE(facts.st_mode):04o}")
    return sorted(found)


def _find_qemu_group() -> int:
    """The group of QEMU's user alone, where there is one; `kvm`, its first group, may have people in it."""
    try:
        return grp.getgrnam(QEMU_USER).gr_gid
    except KeyError:
        return -1
