"""The users and groups of a world: 0 is the person, 1 to 65536 are sub-ids, and the group of /dev/kvm is unchanged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process
from ktrdr_vm.users import name_user

# Users of packages, such as libvirt-qemu, and those of instances are below this number.
MAPPED = 65536
_SUBUID, _SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
KVM = Path("/dev/kvm")


@dataclass(frozen=True)
class Range:
    """`count` ids from `inside` in the world are those from `outside` on the host."""

    inside: int
    outside: int
    count: int


def find_map(person: int, group: int) -> tuple[list[Range], list[Range]]:
    """The maps of users and of groups. HostError with the command to run if the host gives the person no sub-ids."""
    user_range, group_range = _find_range(_SUBUID, person), _find_range(_SUBGID, person)
    if not user_range or not group_range:
        name, free = name_user(person), _find_free()
        raise HostError(
            f"{name} has no {MAPPED} subordinate ids, so QEMU and the guards could not run as users of their own",
            where=str(_SUBGID if user_range else _SUBUID),
            hint=f"as root: usermod --add-subuids {free} --add-subgids {free} {name}; or use sudo",
        )
    groups = make_ranges(group, group_range, find_kvm_group(person))
    return make_ranges(person, user_range), groups


def make_ranges(person: int, first: int, itself: int | None = None) -> list[Range]:
    """0 is the person; each other id is the sub-id with that offset, except `itself`, which is the same inside and
    outside."""
    if itself is None or not 0 < itself <= MAPPED:
        return [Range(0, person, 1), Range(1, first, MAPPED)]
    parts = [Range(1, first, itself - 1), Range(itself, itself, 1), Range(itself + 1, first + itself, MAPPED - itself)]
    return [Range(0, person, 1), *(part for part in parts if part.count)]


def find_kvm_group(person: int) -> int | None:
    """The group of /dev/kvm, if the person has it as a sub-id; without it QEMU's user cannot open /dev/kvm."""
    try:
        group = KVM.stat().st_gid
    except OSError:
        return None
    entries = _read(_SUBGID, person)
    return group if any(first <= group < first + count for first, count in entries) and group else None


def write_maps(pid: int, users: list[Range], groups: list[Range]) -> None:
    """Set the maps of a process in a new user namespace, with the programs of the package uidmap."""
    for program, ranges in (("newuidmap", users), ("newgidmap", groups)):
        words = [str(number) for one in ranges for number in (one.inside, one.outside, one.count)]
        done = process.run([program, str(pid), *words], timeout=10, check=False)
        if done.exit_code != 0:
            raise HostError(
                f"{program} refused the map: {done.error_text}",
                where=str(_SUBUID),
                hint="`ktrdr-vm doctor` checks the host",
            )


def _find_free() -> str:
    """The first range that is not assigned, in the format of usermod."""
    first = max((first + count for path in (_SUBUID, _SUBGID) for _, first, count in _parse(path)), default=0)
    first = max(first, 100_000)
    return f"{first}-{first + MAPPED - 1}"


def _find_range(path: Path, person: int) -> int:
    """The first id of a range that is large enough, or 0."""
    return next((first for first, count in _read(path, person) if count >= MAPPED), 0)


def _read(path: Path, person: int) -> list[tuple[int, int]]:
    """First id and number of each range of the person."""
    return [(first, count) for name, first, count in _parse(path) if name in (name_user(person), str(person))]


def _parse(path: Path) -> list[tuple[str, int, int]]:
    """The lines of a file: name or uid, first id, number of ids. Other lines are ignored, as newuidmap does."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.strip().split(":") for line in lines]
    return [
        (one[0], int(one[1]), int(one[2]))
        for one in words
        if len(one) == 3 and one[1].isdecimal() and one[2].isdecimal()
    ]


def require_user_namespaces() -> None:
    """HostError if only root can create user namespaces on this host."""
    for name, forbidden, what in (
        ("kernel/unprivileged_userns_clone", "0", "user namespaces are for root only"),
        ("user/max_user_namespaces", "0", "no user namespaces are allowed"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor gives user namespaces no capabilities"),
    ):
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == forbidden and os.geteuid() != 0:
            setting = name.replace("/", ".")
            wanted = {"user.max_user_namespaces": "65536"}.get(setting, "1" if forbidden == "0" else "0")
            raise HostError(what, where=setting, hint=f"as root: `sysctl -w {setting}={wanted}`; or use sudo")
    # A chroot or the seccomp filter of a container forbids them without a setting.
    tried = process.run(["unshare", "--user", "--mount", "--net", "--ipc", "--", "true"], timeout=10, check=False)
    if tried.exit_code != 0:
        raise HostError(
            f"the kernel refuses user namespaces to this process: {tried.error_text}",
            where="unshare --user",
            hint=(
                "enter a root with pivot_root instead of chroot, as container runtimes do; in a container, allow the"
                " system calls unshare and setns; or run as root"
            ),
        )
