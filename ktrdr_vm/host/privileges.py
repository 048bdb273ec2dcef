"""What a process gives up: its user, its network, limits, and further imports."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class _SealedImports:
    """Finds no module, and prints the name of the requested one to standard error: it should have been imported
    before."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name not in self._reported:
            self._reported.add(name)
            os.write(2, f"the module {name} was imported after the privileges were dropped\n".encode())
        raise ModuleNotFoundError(
            f"No module named {name!r}: it must be imported before the privileges are dropped", name=name
        )


def seal_imports() -> None:
    """Disable imports of all modules that are not built in.

    The new user of a process may not be able to read this program or the library of Python, for example in a folder of
    mode 0700. Imports are disabled everywhere, so that tests find this too.
    """
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _SealedImports()]


def drop_privileges(uid: int, parent: int, *, gid: int | None = None) -> None:
    """Become `uid` (and `gid`, by default the same number) permanently, disable imports, and end with `parent`."""
    seal_imports()
    group = uid if gid is None else gid
    if os.geteuid() == 0:
        os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.chdir("/")
    die_with(parent)


def leave_network() -> None:
    """Move this process to an empty network namespace; its open sockets stay in the old one."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot leave the network namespace")


def exec_unconfined() -> None:
    """Let the next program of this process run without an AppArmor profile of its path. No effect where there is no
    AppArmor."""
    for place in ("apparmor/exec", "exec"):
        with contextlib.suppress(OSError):
            Path("/proc/self/attr", place).write_text("exec unconfined")
            return


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, instead of the first process of the PID namespace. The
    caller reaps them."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be adopted")


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the parent ends; exit if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def lower_limit(what: int, most: int) -> None:
    """Set the soft and the hard limit of this process to `most`, or to its hard limit if that is lower.

    `what` is one of resource.RLIMIT_*. Only root may raise a hard limit, and a login may begin with a lower one.
    """
    hard = resource.getrlimit(what)[1]
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (bound, bound))
