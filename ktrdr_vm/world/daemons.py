"""libvirtd and virtlogd of a world: configured, started, and started again when they have ended. They outlive who
started them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from ktrdr_vm.errors import HostError, keep_end
from ktrdr_vm.host import process

NAMES = ("virtlogd", "libvirtd")
START_LIMIT = 60.0
_PIDS = Path("/run/libvirt")
_POLL = 0.05
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

# The world's root has no rights over the host's: no labels of AppArmor or device numbers that it could set, and of
# cgroups only those that systemd has delegated.
# QEMU runs as the user of the package, which is a sub-id, and sees only the devices that are in /dev here.
_SETTINGS = {
    "qemu.conf": (
        'user = "libvirt-qemu"\ngroup = "libvirt-qemu"\nremember_owner = 0\nsecurity_driver = "none"\n'
        "namespaces = []\n"
        # Those of the host are not this user's.
        "hugetlbfs_mount = []\n"
        # By default libvirt raises the limit of QEMU's core dumps. Only root of the host may raise one that a login
        # has lowered, and QEMU then does not start.
        "max_core = 0\n"
    ),
    "libvirtd.conf": (
        'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_group = "root"\nunix_sock_rw_perms = "0700"\n'
    ),
    "virtlogd.conf": "",
}
_FOLDERS = ("qemu", "storage", "nwfilter", "secrets")


def write_settings(folder: Path, *, delegated: bool) -> None:
    """What is /etc/libvirt in the world: definitions of VMs outlive the world in it, the settings are written again.
    `delegated`: there are cgroups with the controller of CPU time."""
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    for name, text in _SETTINGS.items():
        (folder / name).write_text(text)
    with (folder / "qemu.conf").open("a") as file:
        file.write('cgroup_controllers = ["cpu"]\n' if delegated else "cgroup_controllers = []\n")


def find_pid(name: str) -> int:
    """The process of a daemon, or 0. Its file of the pid may be an earlier one's."""
    try:
        pid = int((_PIDS / f"{name}.pid").read_text())
        return pid if Path(f"/proc/{pid}/comm").read_text().strip() == name else 0
    except (OSError, ValueError):
        return 0


def start_missing(name: str) -> None:
    """Start a daemon in the mount namespace of this process, unless it runs. It outlives this process."""
    if find_pid(name):
        return
    done = process.run([name, "-d", "--pid-file", _PIDS / f"{name}.pid"], timeout=START_LIMIT, check=False)
    if done.exit_code != 0:
        raise HostError(
            f"{name} cannot be started: {keep_end(done.error_text, 500)}",
            where=name,
            hint="install libvirt-daemon-system; `ktrdr-vm doctor`",
        )


def supervise() -> None:
    """Reap the daemons and what they leave, and start each daemon again when it has ended, for ever."""
    pause, due = _FIRST_PAUSE, 0.0
    while True:
        time.sleep(_FIRST_PAUSE)
        _reap()
        if time.monotonic() < due:
            continue
        missing = [name for name in NAMES if not find_pid(name)]
        pause = min(2 * pause, _LONGEST_PAUSE) if missing else _FIRST_PAUSE
        due = time.monotonic() + (pause if missing else 0)
        for name in missing:
            start_missing(name)


def _reap() -> None:
    """A QEMU that nobody reaps is still there for libvirt, which then cannot stop its domain. The first process of a
    container often reaps nothing."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def wait_until_answers() -> None:
    """Until libvirtd listens."""
    end = time.monotonic() + START_LIMIT
    while not Path("/run/libvirt/libvirt-sock").exists():
        if time.monotonic() > end:
            raise HostError(
                f"libvirtd did not listen within {START_LIMIT:g} s", where="/run/libvirt", hint="`ktrdr-vm doctor`"
            )
        time.sleep(_POLL)


def end_all() -> None:
    for name in reversed(NAMES):
        pid = find_pid(name)
        if pid:
            os.kill(pid, 15)
    shutil.rmtree(_PIDS, ignore_errors=True)
