"""libvirtd and virtlogd of the lab: in its namespaces, with state of their own, ended with the session."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from laboratory.namespaces import hide, require_own_namespace
from laboratory.recorder import wait_until

# Everything that would be shared with the machine's own libvirtd, besides its cache of QEMU's capabilities.
_STATE = ("/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/etc/libvirt/qemu")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def running_libvirt(logs: Path) -> Iterator[None]:
    require_own_namespace()
    for path in _STATE:
        hide(path)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("virtlogd", "libvirtd"):
            with (logs / f"{name}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, str(Path(__file__).with_name("reaper.py")), name, "--pid-file", str(logs / f"{name}.pid")],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                        preexec_fn=_die_with_parent,
                    )
                )
        wait_until(_answers, "libvirtd of the lab answers", 60)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(15)


def _answers() -> bool:
    try:
        libvirt.open("qemu:///system").close()
    except libvirt.libvirtError:
        return False
    return True
