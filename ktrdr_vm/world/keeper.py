"""The process that holds a world, outside of it: the person, in the host's namespaces.

    keeper (the person, outside)    maps ids, starts pasta, shows the world where the host's network and its cgroups are
    ├── pasta                       carries what leaves the world, as the person
    └── root of the world           see `world/root.py`

libvirtd, guards and QEMU are no children of it. When it was killed, the next command starts another one, which takes up
the namespaces of any process that is left in the world.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import cgroups, process
from ktrdr_vm.host.sub_ids import find_kvm_group, find_map, write_maps
from ktrdr_vm.world.enter import find_namespace
from ktrdr_vm.world.layout import Layout, Record, write_error
from ktrdr_vm.world.uplink import Uplink

_POLL = 0.5


def main() -> None:
    """`FOLDER HOME PERSONS-HOME PID`, where PID is a process of a world that lost its keeper, or 0.

    Descriptor 1 is a pipe: a line on it says that the world serves.
    """
    folder, home, person_home, orphan = sys.argv[1:5]
    layout = Layout(Path(folder), Path(home))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        inner, uplink = _make(layout, person_home, int(orphan))
    except (KtrdrError, OSError) as error:
        write_error(error)
        return
    os.write(1, b"ready\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if _keep(inner, uplink) == 0:
        _forget(layout, inner)


def _make(layout: Layout, person_home: str, orphan: int) -> tuple[int, Uplink]:
    """Returns the process of the world's root, when the world serves, and what carries its packets."""
    steps, kvm = _Steps(), find_kvm_group(os.getuid())
    # A world that is taken up is in the scope of its first keeper, or in none.
    scope = cgroups.find_scope(orphan or os.getpid())
    if orphan and scope is not None:
        cgroups.occupy(scope, [os.getpid()])
    words: list[str | Path] = [
        layout.home,
        person_home,
        str(orphan),
        str(os.getpid()),
        "" if kvm is None else str(kvm),
        layout.use_lock,
        "delegated" if scope is not None else "",
    ]
    inner = process.start_module(
        "ktrdr_vm.world.root",
        words,
        streams=process.Streams(steps.child_reads, steps.child_writes, sys.stderr.fileno()),
        new_session=False,
    )
    steps.started()
    if not orphan:
        steps.expect("unshared")
        if scope is not None:
            cgroups.occupy(scope, [os.getpid(), inner.pid])
        write_maps(inner.pid, *find_map(os.getuid(), os.getgid()))
        steps.tell("mapped")
    steps.expect("mounted")
    uplink = Uplink(inner.pid)
    steps.tell("go on")
    steps.expect("serves")
    layout.write_record(Record(inner.pid, find_namespace(inner.pid, "user"), find_namespace(inner.pid, "mnt")))
    return inner.pid, uplink


def _keep(inner: int, uplink: Uplink) -> int:
    """Until the world's root ends. Returns 0 if the world ended with it, and is not to be taken up by another one."""
    while (ended := os.waitpid(inner, os.WNOHANG)) == (0, 0):
        uplink.look()
        time.sleep(_POLL)
    uplink.end()
    return ended[1]


def _forget(layout: Layout, inner: int) -> None:
    """Remove the record, unless a command has made another world meanwhile."""
    lock = os.open(layout.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    record = layout.read_record()
    if record is not None and record.pid == inner:
        layout.record.unlink()
    os.close(lock)


class _Steps:
    """Two pipes between the keeper and the world's root, with a word for each step that is done."""

    def __init__(self) -> None:
        self.child_reads, self._ours = os.pipe2(os.O_CLOEXEC)
        self._theirs, self.child_writes = os.pipe2(os.O_CLOEXEC)

    def started(self) -> None:
        os.close(self.child_reads)
        os.close(self.child_writes)

    def expect(self, word: str) -> None:
        if os.read(self._theirs, 100).decode().strip() != word:
            raise ChildProcessError("the root of the world ended before it served")

    def tell(self, word: str) -> None:
        os.write(self._ours, f"{word}\n".encode())
