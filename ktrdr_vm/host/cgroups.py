"""CPU limits by cgroups: libvirt sets them under root; without root, in the scope that systemd delegates to a world.

The world of a user who lingers is in a scope of the user's manager. The cgroup namespace of the world begins at the
scope, so that libvirt creates and limits the cgroups of VMs in it as it does under root.

    user@1000.service/…/ktrdr-vm-world-….scope     the root of the world's cgroup namespace; no processes
    ├── world                                      keeper, root, daemons, pasta
    └── …/qemu-1-ktrdr-….libvirt-qemu              a VM, made by libvirt
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ktrdr_vm.users import in_user_namespace, name_user

ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_RUN = Path("/run")
_LINGER = Path("/var/lib/systemd/linger")
_SCOPE = "ktrdr-vm-world-"
# Where the processes of the world are: a cgroup that gives controllers to others has none itself.
_LEAF = "world"
_CONTROLLER = "cpu"


class Refusal(NamedTuple):
    """Why a world has no CPU limits, and the command that changes it."""

    reason: str
    hint: str


def can_limit_cpu_time() -> bool:
    """True if libvirt can limit the CPU time of VMs, here or in the world that this process would make. cgroup v2 lists
    its controllers, v1 mounts each."""
    if in_user_namespace():
        # That of the host belongs to nobody in here.
        return _CONTROLLER in _read_controllers(ROOT) and os.access(ROOT / "cgroup.subtree_control", os.W_OK)
    if os.geteuid() != 0:
        return refuse_delegation(os.geteuid()) is None
    if (ROOT / "cgroup.controllers").exists():
        return _CONTROLLER in _read_controllers(ROOT)
    return any((ROOT / name / "cpu.cfs_quota_us").exists() for name in ("cpu", "cpu,cpuacct"))


def refuse_delegation(uid: int) -> Refusal | None:
    """Why systemd would not delegate a scope to a world that this process starts as `uid`; None if it would."""
    name = name_user(uid)
    manager = ROOT / f"user.slice/user-{uid}.slice/user@{uid}.service"
    if not (ROOT / "cgroup.controllers").exists():
        return Refusal(
            "this host has no unified cgroup v2", "boot with systemd.unified_cgroup_hierarchy=1, or use sudo"
        )
    if not (_RUN / "systemd/system").exists():
        return Refusal("systemd, which delegates cgroups, does not run", "use sudo")
    if not (_LINGER / name).exists():
        return Refusal("what systemd holds for a user ends with the last session", f"loginctl enable-linger {name}")
    if not (_RUN / f"user/{uid}/systemd/private").exists():
        return Refusal("the user manager of systemd does not run", f"as root: systemctl start user@{uid}.service")
    if _CONTROLLER not in _read_controllers(manager):
        return Refusal(
            "systemd does not delegate the cpu controller to users",
            "as root: write `[Service]` and `Delegate=cpu memory pids` to"
            " /etc/systemd/system/user@.service.d/delegate.conf, run `systemctl daemon-reload`, and log in again",
        )
    if f"/user-{uid}.slice/" not in f"{_find_cgroup('self')}/":
        # A job of a batch system must not leave its cgroup, by which it is limited and ended.
        return Refusal("this process is not in a session of the user", "log in, for instance over SSH")
    return None


def make_launcher(uid: int) -> tuple[list[str], dict[str, str]]:
    """The words and the environment with which a program is started in a delegated scope of its own; empty if systemd
    would not delegate one. The process executes the program, so that its pid is the program's."""
    if refuse_delegation(uid) is not None:
        return [], {}
    unit = f"--unit={_SCOPE}{os.urandom(6).hex()}"
    words = ["systemd-run", "--user", "--scope", "--quiet", "--collect", unit, f"--property=Delegate={_CONTROLLER}"]
    return [*words, "--"], {"XDG_RUNTIME_DIR": str(_RUN / f"user/{uid}")}


def find_scope(pid: int | str) -> Path | None:
    """The delegated scope in which a process of a world is; None if it is in none."""
    path = Path(_find_cgroup(pid))
    found = next((one for one in (path, *path.parents) if one.name.startswith(_SCOPE)), None)
    return ROOT / found.relative_to("/") if found is not None else None


def occupy(scope: Path, pids: Iterable[int]) -> None:
    """Move processes to the leaf of the world, and let libvirt use the controllers in the scope. OSError if the scope
    has other processes, or is not this user's."""
    leaf = scope / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        (leaf / "cgroup.procs").write_text(str(pid))
    (scope / "cgroup.subtree_control").write_text(f"+{_CONTROLLER}")


def _find_cgroup(pid: int | str) -> str:
    """The cgroup v2 of a process, as this process sees it; empty if there is none."""
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _read_controllers(cgroup: Path) -> list[str]:
    try:
        return (cgroup / "cgroup.controllers").read_text().split()
    except OSError:
        return []
