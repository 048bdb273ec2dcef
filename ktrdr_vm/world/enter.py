"""Entering the world of this person, which is made if there is none. Afterwards the process is the world's root."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.users import find_changeable, find_home_folder, in_user_namespace
from ktrdr_vm.world.layout import Layout, Record, find_layout, read_errors

# In the order in which they are entered: the first gives the rights for the others.
_KINDS = {"user": 0x10000000, "mnt": 0x00020000, "net": 0x40000000, "ipc": 0x08000000}
# That of a world in a delegated scope; daemons are started in it, and commands do not need it.
CGROUP = {"cgroup": 0x02000000}
# Seconds; the daemons start in one on an idle host.
START_LIMIT = 120.0
_PR_SET_DUMPABLE = 4
_LIBC = ctypes.CDLL(None, use_errno=True)
# Held by each command until it ends: the world does not end meanwhile. Not inherited by what outlives the command.
_held: list[int] = []


def enter_world(home: Path, *, paths: tuple[Path, ...] = ()) -> None:
    """Enter the world that serves the state directory `home`, as its root.

    Owners are not seen in it, so `paths`, which only root and the person may change, are checked before. HostError with
    the command to run if this host cannot have a world.
    """
    for path in (home, *paths):
        if changeable := find_changeable(path):
            raise HostError(
                f"other users can change {path}: {changeable}",
                where=changeable,
                hint=f"chown it to yourself and `chmod go-w {changeable}`",
            )
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    layout = find_layout(home)
    _held.append(_find_or_start(layout))
    record = layout.read_record()
    if record is None:
        raise HostError("the world ended as it was entered", where=str(layout.log), hint="run the command again")
    _enter(record, home)


def enter_existing(home: Path) -> None:
    """Enter the world of a state directory. ProvisionError if there is none: then no instance runs."""
    record = find_world(find_layout(home))
    if record is None:
        raise ProvisionError(
            "no instance of yours runs",
            where=str(home),
            hint="`ktrdr-vm list` shows the instances; `ktrdr-vm apply` again",
        )
    _enter(record, home)


def _enter(record: Record, home: Path) -> None:
    folder = Path.cwd()
    enter_namespaces(record.pid)
    become_root()
    os.chdir(folder)
    for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER"):
        os.environ.pop(name, None)
    os.environ["KTRDR_VM_HOME"] = str(home)
    in_user_namespace.cache_clear()


def enter_namespaces(pid: int, more: Mapping[str, int] | None = None) -> None:
    """Enter the namespaces of a process of a world, and `more` of them, each a name in /proc and its flag. This process
    must have one thread."""
    for kind, number in {**_KINDS, **(more or {})}.items():
        descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _LIBC.setns(descriptor, number) != 0:
                raise HostError(
                    f"the {kind} namespace of the world cannot be entered: {os.strerror(ctypes.get_errno())}",
                    where=f"/proc/{pid}/ns/{kind}",
                    hint="run the command again",
                )
        finally:
            os.close(descriptor)


def become_root() -> None:
    """Become the world's root, who is the person outside."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Other commands of the person find the namespaces by this process.
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def find_world(layout: Layout) -> Record | None:
    """The record of a world whose root lives."""
    record = layout.read_record()
    return record if record is not None and find_namespace(record.pid, "mnt") == record.mount_namespace else None


def _find_or_start(layout: Layout) -> int:
    """The descriptor of the lock that keeps the world from ending."""
    start = os.open(layout.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(start, fcntl.LOCK_EX)
        use = os.open(layout.use_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # The root of a world that ends holds it alone until it has ended.
        fcntl.flock(use, fcntl.LOCK_SH)
        if find_world(layout) is None:
            _start(layout)
        return use
    finally:
        os.close(start)


def _start(layout: Layout) -> None:
    # Imported on use: entering a world that is there takes none of it.
    from ktrdr_vm.host import process
    from ktrdr_vm.host.cgroups import make_launcher
    from ktrdr_vm.host.sub_ids import find_map, require_user_namespaces

    require_user_namespaces()
    find_map(os.getuid(), os.getgid())
    for program in ("newuidmap", "newgidmap", "pasta", "libvirtd", "virtlogd"):
        process.require_program(program)
    orphan = _find_orphan(layout)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    log = os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    begin = os.fstat(log).st_size
    words: list[str | Path] = [layout.folder, layout.home, find_home_folder(), str(orphan)]
    launcher, environment = make_launcher(os.getuid())
    started = process.start_module(
        "ktrdr_vm.world.keeper",
        words,
        launcher=launcher,
        environment=environment,
        streams=process.Streams(stdout=ready_write, stderr=log),
    )
    os.close(ready_write)
    os.close(log)
    end = time.monotonic() + START_LIMIT
    os.set_blocking(ready_read, False)
    try:
        while time.monotonic() < end:
            try:
                if os.read(ready_read, 100):
                    return
                break  # it ended
            except BlockingIOError:
                time.sleep(0.02)
    finally:
        os.close(ready_read)
    started.kill()
    # The first one is the cause. systemd-run, before the keeper, says its own.
    written = layout.log.read_bytes()[begin:]
    said, hint = read_errors(written), "`ktrdr-vm doctor` checks the host; or use sudo"
    if launcher and not said:
        said = written.decode("utf-8", "replace").splitlines()[-1:]
        hint = "check `systemctl --user status`; after `loginctl disable-linger`, a world needs no scope of systemd"
    raise HostError(
        f"no world can be made: {said[0] if said else 'its keeper ended without a word'}",
        where=str(layout.log),
        hint=hint,
    )


def _find_orphan(layout: Layout) -> int:
    """A process of the recorded world whose root was killed, or 0; then what is left without one is ended."""
    record = layout.read_record()
    if record is None:
        return 0
    pids = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
    members = [pid for pid in pids if find_namespace(pid, "user") == record.user_namespace]
    orphan = next((pid for pid in members if find_namespace(pid, "mnt") == record.mount_namespace), 0)
    if not orphan:
        # Daemons and VMs without a guard, in whose view of the file system no command works.
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return orphan


def find_namespace(pid: int, kind: str) -> int:
    """The number of a namespace of a process, or 0 if there is no such process that this one may trace."""
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    except OSError:
        return 0
