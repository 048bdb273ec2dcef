"""Bind mounts of open folders, so that nothing can be replaced between the check and the mount."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountFacts:
    """One line of /proc/self/mountinfo."""

    target: str
    options: frozenset[str]
    filesystem: str


def find_mounts(beneath: Path) -> list[MountFacts]:
    """The mounts at or beneath a folder, in the order of mounting."""
    found = []
    prefix = str(beneath)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        target = words[4].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
        if target == prefix or target.startswith(prefix + "/"):
            found.append(MountFacts(target, frozenset(words[5].split(",")), rest.split(" ")[0]))
    return found


def bind_readonly(source: int, target: Path) -> None:
    """Bind the folder behind a descriptor at `target`: read-only, no setuid, no devices, without the mounts beneath
    it."""
    path = f"/proc/self/fd/{source}".encode()
    _call(_LIBC.mount(path, os.fsencode(target), None, _MS_BIND, None), "bind", target)
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    try:
        _call(_LIBC.mount(None, os.fsencode(target), None, flags, None), "make read-only", target)
    except HostError:
        with contextlib.suppress(HostError):
            unmount(target)
        raise


def unmount(target: Path) -> None:
    """Detach the mount, even if it is in use (MNT_DETACH); open files stay open."""
    _call(_LIBC.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | _MNT_DETACH), "unmount", target)


def _call(result: int, doing: str, target: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise HostError(
            f"cannot {doing}: {os.strerror(number)}",
            where=str(target),
            hint="run as root, on a host that allows mounts",
        )
