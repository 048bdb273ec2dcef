"""libvirtd and virtlogd of the lab: in its namespaces, with state of their own, ended with the session."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laboratory.namespaces import hide, require_own_namespace
from laboratory.recorder import wait_until

# Everything that would be shared with the machine's own libvirtd, besides its cache of QEMU's capabilities.
STATE = ("/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/etc/libvirt/qemu", "/etc/libvirt/storage")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


_STARTED: dict[str, subprocess.Popen[bytes]] = {}


@contextmanager
def running_libvirt(logs: Path) -> Iterator[None]:
    require_own_namespace()
    for path in STATE:
        hide(path)
    try:
        for name in ("virtlogd", "libvirtd"):
            start_daemon(name, logs)
        wait_until(_answers, "libvirtd of the lab answers", 60)
        yield
    finally:
        for name in ("libvirtd", "virtlogd"):
            if name in _STARTED:
                end_daemon(name)


def start_daemon(name: str, logs: Path) -> None:
    with (logs / f"{name}.log").open("ab") as log:
        _STARTED[name] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("reaper.py")), name, "--pid-file", str(logs / f"{name}.pid")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            preexec_fn=_die_with_parent,
        )


def end_daemon(name: str) -> None:
    """What it has started, a QEMU that is its own process, runs on."""
    process = _STARTED.pop(name)
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


def restart_daemons(logs: Path, away: float = 0.0, *, rebooted: bool = False) -> None:
    """As an upgrade of the host's packages does it. `away` is for how many seconds nobody answers; a reboot empties
    /run as well."""
    for name in ("libvirtd", "virtlogd"):
        end_daemon(name)
    time.sleep(away)
    if rebooted:
        require_own_namespace()
        # A tmpfs of the lab's own, as every folder that the daemons write to.
        for path in Path("/run/libvirt").iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("virtlogd", "libvirtd"):
        start_daemon(name, logs)
    wait_until(_answers, "libvirtd of the lab answers again", 60)


def _answers() -> bool:
    import libvirt  # late: parts of the laboratory are used where the binding cannot be compiled

    try:
        libvirt.open("qemu:///system").close()
    except libvirt.libvirtError:
        return False
    return True
