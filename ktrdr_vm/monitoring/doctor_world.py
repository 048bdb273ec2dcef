"""Checks of what a run without root requires of this host, each with the command that meets it. Changes nothing, and
enters no world."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.cgroups import refuse_delegation
from ktrdr_vm.host.sub_ids import KVM, find_kvm_group, find_map, require_user_namespaces
from ktrdr_vm.monitoring.check import Check
from ktrdr_vm.users import name_group, name_user
from ktrdr_vm.world.enter import find_world
from ktrdr_vm.world.layout import find_layout

_TUN = Path("/dev/net/tun")
_LINGER = Path("/var/lib/systemd/linger")


def check_for_world(home: Path) -> list[Check]:
    """All checks, as the person, in the order in which a world needs them."""
    checks = [_namespaces(), _sub_ids(), _tun(), _kvm(), _limits(), _linger(), _world(home)]
    return [check for check in checks if check is not None]


def _namespaces() -> Check:
    try:
        require_user_namespaces()
    except KtrdrError as error:
        return Check("user namespaces", "missing", f"{error.message} ({error.where})", error.hint)
    return Check("user namespaces", "ok", "this user may make them")


def _sub_ids() -> Check:
    try:
        users, _ = find_map(os.getuid(), os.getgid())
    except KtrdrError as error:
        return Check("subordinate ids", "missing", error.message, error.hint)
    return Check(
        "subordinate ids", "ok", f"{users[-1].count} from {users[-1].outside}; QEMU and the guards run as some of them"
    )


def _tun() -> Check | None:
    if not _TUN.exists() or os.access(_TUN, os.R_OK | os.W_OK):
        return None
    return Check(
        "tun", "missing", f"this user may not open {_TUN}", f"as root: chmod 666 {_TUN}, which udev does where it runs"
    )


def _kvm() -> Check | None:
    if not KVM.exists():
        return None
    facts, name = KVM.stat(), name_user(os.getuid())
    if facts.st_mode & 0o006 == 0o006:
        return Check("kvm access", "ok", f"everybody may open {KVM}")
    if not os.access(KVM, os.R_OK | os.W_OK):
        group = name_group(facts.st_gid)
        # usermod takes a number only if a group has it.
        made = f"groupadd -g {group} kvm-of-host && " if group.isdecimal() else ""
        group = "kvm-of-host" if group.isdecimal() else group
        return Check(
            "kvm access",
            "warning",
            f"this user may not open {KVM}",
            f"as root: {made}usermod -aG {group} {name}; then log in again",
        )
    if find_kvm_group(os.getuid()) is None:
        return Check(
            "kvm access",
            "warning",
            f"the user of QEMU may not open {KVM}, because its group is no subordinate id",
            f"as root: usermod --add-subgids {facts.st_gid}-{facts.st_gid} {name}; running instances keep software"
            " emulation",
        )
    return Check("kvm access", "ok", f"the user of QEMU has the group of {KVM} as a subordinate id")


def _limits() -> Check:
    refusal = refuse_delegation(os.getuid())
    if refusal is None:
        return Check("limits", "ok", "systemd delegates cgroups, in which the CPU time of each VM is limited")
    return Check(
        "limits",
        "warning",
        f"the CPU time of a VM is not limited beyond the number of its vCPUs: {refusal.reason}",
        refusal.hint,
    )


def _linger() -> Check | None:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    name = name_user(os.getuid())
    if not runtime.startswith("/run/user/") or not _LINGER.parent.exists() or (_LINGER / name).exists():
        return None
    return Check(
        "linger", "warning", "instances lose their world when your last session ends", f"loginctl enable-linger {name}"
    )


def _world(home: Path) -> Check:
    record = find_world(find_layout(home))
    return Check(
        "world", "ok", f"process {record.pid} holds it" if record else "there is none; the first command makes it"
    )
