"""When a world is started in a scope that systemd delegates, and what is written there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.host import cgroups
from ktrdr_vm.monitoring import doctor_world

UID = 1000
MANAGER = f"user.slice/user-{UID}.slice/user@{UID}.service"
SESSION = f"/user.slice/user-{UID}.slice/session-1.scope"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with systemd, a user who lingers, and this process in a session of theirs."""
    for name, folder in (("ROOT", "cgroup"), ("_RUN", "run"), ("_PROC", "proc"), ("_LINGER", "linger")):
        monkeypatch.setattr(cgroups, name, tmp_path / folder)
    monkeypatch.setattr(cgroups, "name_user", lambda _: "alice")
    monkeypatch.setattr(cgroups, "in_user_namespace", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    write(tmp_path / "cgroup/cgroup.controllers", "cpuset cpu io memory pids")
    write(tmp_path / f"cgroup/{MANAGER}/cgroup.controllers", "cpu memory pids")
    write(tmp_path / "linger/alice", "")
    write(tmp_path / f"run/user/{UID}/systemd/private", "")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    write(tmp_path / "proc/self/cgroup", f"0::{SESSION}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_user_who_lingers_gets_a_scope(host: Path) -> None:
    assert cgroups.refuse_delegation(UID) is None and cgroups.can_limit_cpu_time()
    words, environment = cgroups.make_launcher(UID)
    assert words[:3] == ["systemd-run", "--user", "--scope"] and words[-1] == "--"
    assert "--property=Delegate=cpu" in words
    assert environment == {"XDG_RUNTIME_DIR": str(host / f"run/user/{UID}")}
    # A scope whose processes have not all ended keeps its name.
    assert words != cgroups.make_launcher(UID)[0]


WITHOUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "cgroup v1": (lambda host: (host / "cgroup/cgroup.controllers").unlink(), "no unified cgroup v2"),
    "no systemd": (lambda host: (host / "run/systemd/system").rmdir(), "does not run"),
    "no linger": (lambda host: (host / "linger/alice").unlink(), "last session"),
    "no manager": (lambda host: (host / f"run/user/{UID}/systemd/private").unlink(), "user manager"),
    "no controller": (lambda host: write(host / f"cgroup/{MANAGER}/cgroup.controllers", "memory pids"), "cpu controller"),
    "a batch job": (lambda host: write(host / "proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_7\n"), "session"),
    "another user": (lambda host: write(host / "proc/self/cgroup", "0::/user.slice/user-10001.slice/x\n"), "session"),
}  # fmt: skip


@pytest.mark.parametrize(("take", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_what_is_missing_is_named_and_nothing_is_started_in_a_scope(
    host: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: UID)
    assert doctor_world._limits().state == "ok"
    take(host)
    refusal = cgroups.refuse_delegation(UID)
    assert refusal is not None and reason in refusal.reason and refusal.hint
    assert cgroups.make_launcher(UID) == ([], {}) and not cgroups.can_limit_cpu_time()
    said = doctor_world._limits()
    assert said.state == "warning" and "beyond the number of its vCPUs" in said.detail and reason in said.detail


def test_a_world_is_found_by_its_scope_and_taken_up_in_it(host: Path) -> None:
    scope = f"/{MANAGER}/app.slice/ktrdr-vm-world-0123456789ab.scope"
    for pid, below in (("7", ""), ("8", "/world"), ("9", "/machine/qemu-1-ktrdr-one.libvirt-qemu/libvirt/emulator")):
        write(host / f"proc/{pid}/cgroup", f"0::{scope}{below}\n")
        assert cgroups.find_scope(pid) == host / f"cgroup{scope}"
    assert cgroups.find_scope("self") is None and cgroups.find_scope("99") is None


def test_the_scope_itself_has_no_processes_before_it_gives_its_controller(host: Path) -> None:
    scope = host / "scope"
    scope.mkdir()
    cgroups.occupy(scope, [7])
    assert (scope / "world/cgroup.procs").read_text() == "7"
    assert (scope / "cgroup.subtree_control").read_text() == "+cpu"


def test_in_a_world_the_cgroups_of_the_host_are_nobodys(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "in_user_namespace", lambda: True)
    control = host / "cgroup/cgroup.subtree_control"
    write(control, "")
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (control, os.W_OK))
    assert not cgroups.can_limit_cpu_time()
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) == (control, os.W_OK))
    assert cgroups.can_limit_cpu_time()


def test_root_is_limited_by_either_version_of_cgroups(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cgroups.can_limit_cpu_time()
    (host / "cgroup/cgroup.controllers").unlink()
    assert not cgroups.can_limit_cpu_time()
    write(host / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    assert cgroups.can_limit_cpu_time()
