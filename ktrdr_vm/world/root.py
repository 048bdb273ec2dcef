"""The root of a world: the process in which its namespaces are made, and which ends it when nobody needs it any
more."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import netns, process
from ktrdr_vm.host.accelerator import find_accelerator
from ktrdr_vm.host.privileges import adopt_orphans, die_with
from ktrdr_vm.identity import DOMAIN_PREFIX
from ktrdr_vm.world import daemons, mounts
from ktrdr_vm.world.enter import CGROUP, become_root, enter_namespaces
from ktrdr_vm.world.layout import OUTSIDE, write_error

# Seconds without an instance or a command after which a world ends.
IDLE_LIMIT = 600.0
_POLL = 1.0
_NEW = 0x10000000 | 0x00020000 | 0x40000000 | 0x08000000  # user, mount, network and IPC namespaces
_KVM = Path("/dev/kvm")


def main() -> None:
    """`HOME PERSONS-HOME ORPHAN KEEPER KVM-GROUP USE-LOCK DELEGATED`; standard input and output are the pipes of the
    keeper. `DELEGATED` is empty if the world has no cgroups."""
    home, person_home, orphan, keeper, kvm, use_lock, delegated = sys.argv[1:8]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _make(Path(home), int(orphan), int(keeper), delegated=bool(delegated))
        os.setgroups([int(kvm)] if kvm else [])
        # A /dev/kvm that does not work makes libvirt probe QEMU again at each call.
        with_kvm = _KVM.exists() and find_accelerator().name == "kvm"
        supervisor = _start_daemons(Path(home), Path(person_home), with_kvm=with_kvm)
        _tell("serves")
        _hold(Path(home), Path(use_lock), supervisor)
    except (KtrdrError, OSError) as error:
        write_error(error)
        os._exit(3)


def _make(home: Path, orphan: int, keeper: int, *, delegated: bool) -> None:
    more = CGROUP if delegated else {}
    if orphan:
        enter_namespaces(orphan, more)
    else:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW | sum(more.values())) != 0:
            raise OSError(ctypes.get_errno(), "namespaces cannot be made")
        _tell("unshared")
        _wait()
    become_root()
    # Not earlier: a change of the user ends it.
    die_with(keeper)
    os.umask(0o022)
    if not orphan:
        settings = home / "world"
        settings.mkdir(mode=0o700, exist_ok=True)
        daemons.write_settings(settings, delegated=delegated)
        mounts.make_view(home, settings, delegated=delegated)
        process.run(["ip", "link", "set", "dev", "lo", "up"], timeout=10)
    _tell("mounted")
    _wait()
    OUTSIDE.unlink(missing_ok=True)
    OUTSIDE.symlink_to(f"/proc/{keeper}")


def _start_daemons(home: Path, person_home: Path, *, with_kvm: bool) -> int:
    """A process in the daemons' view that starts them, again if they end. Returns it when they serve."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    root, child = os.getpid(), os.fork()
    if child == 0:
        try:
            die_with(root)
            adopt_orphans()
            mounts.make_daemons_view(home, person_home, kvm=with_kvm)
            for name in daemons.NAMES:
                daemons.start_missing(name)
            daemons.wait_until_answers()
            os.write(writes, b"serves\n")
            daemons.supervise()
        except (KtrdrError, OSError) as error:
            write_error(error)
        os._exit(3)
    os.close(writes)
    with os.fdopen(reads) as answer:
        if not answer.readline():
            raise ChildProcessError("the daemons of the world did not start")
    mounts.name_daemons_view(child)
    return child


def _hold(home: Path, use_lock: Path, supervisor: int) -> None:
    """Until nobody needs the world: no command is in it, and no instance is there."""
    idle_since = time.monotonic()
    while os.waitpid(supervisor, os.WNOHANG) == (0, 0):
        time.sleep(_POLL)
        lock = os.open(use_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            idle_since = time.monotonic()
            os.close(lock)
            continue
        if netns.list_names(DOMAIN_PREFIX):
            idle_since = time.monotonic()
        if time.monotonic() - idle_since >= _read_limit(home):
            # With the lock: a command that comes now waits for it, and makes a new world.
            os.kill(supervisor, signal.SIGKILL)
            daemons.end_all()
            return
        os.close(lock)
    # The world goes on: the next command takes it up.
    raise ChildProcessError("what supervises the daemons of the world ended")


def _read_limit(home: Path) -> float:
    """A file in the state directory can give another number of seconds."""
    try:
        return float((home / "world" / "idle-limit").read_text())
    except (OSError, ValueError):
        return IDLE_LIMIT


def _tell(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def _wait() -> None:
    if not os.read(0, 100):
        raise ChildProcessError("the keeper of the world ended")
