"""The permissions in the state directory: one table, by which names are created and checked.

Copies and bind mounts never have weaker permissions than their source. A user who may traverse a folder may open
nothing in it that the table does not list.
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
    """`pattern` is beneath the state directory, `mode` is the maximum. `group`: that of QEMU, of the proxy, or of
    root."""

    pattern: str
    mode: int
    group: str = ""


# The first match counts; names without a match are for the owner only.
TABLE = (
    Right(".", 0o711),
    *(Right(name, 0o711) for name in ("images", "templates", "instances", "runs")),
    # Images consist of public packages, so any user of QEMU may read them.
    Right("images/*", 0o755),
    Right("templates/*/*.qcow2", 0o440, "qemu"),
    Right("templates/*/memory", 0o440, "qemu"),
    Right("templates/*/*", 0o600),
    Right("templates/*", 0o711),
    Right("instances/*/mounts", 0o700),
    Right("instances/*/mounts/*", 0o7777),  # a bind mount keeps its permissions, in a closed folder
    Right("instances/*/vmlinuz", 0o444),
    Right("instances/*/initrd", 0o444),
    Right("instances/*/guard/proxy.cfg", 0o440, "proxy"),
    *(
        Right(f"instances/*/guard/*.{kind}", 0o440, "proxy")
        for kind in ("names", "suffixes", "granted", "granted_suffixes")
    ),
    *(
        Right(f"instances/*/guard/{name}", 0o440, "proxy")
        for name in ("given.addresses", "broker.values", "broker.open")
    ),
    Right("instances/*/guard", 0o711),
    Right("instances/*/*/*", 0o700),
    Right("instances/*", 0o711),
    Right("runs/*", 0o711),
    Right("attestation-key.pub", 0o644),
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
    """Set the permissions of the table on a new name. `group` is that of the proxy, for files that it reads."""
    right = find_right(path, home)
    wanted = _find_qemu_group() if right.group == "qemu" else group if right.group == "proxy" else -1
    if os.geteuid() == 0 and wanted >= 0:
        os.chown(path, -1, wanted, follow_symlinks=False)
    path.chmod(right.mode)


def make_private(*folders: Path) -> None:
    """Create folders, outermost first, for their owner only. `mkdir(parents=True)` would create parents with the mode
    of the umask."""
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def find_open(home: Path, beneath: Path | None = None) -> list[str]:
    """Names with more permissions than in the table, each with its mode. Links are not followed, and bind mounts not
    entered."""
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
    """The group that has only the user of QEMU, if it exists; its primary group `kvm` may have other members."""
    try:
        return grp.getgrnam(QEMU_USER).gr_gid
    except KeyError:
        return -1
