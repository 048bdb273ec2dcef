"""How a process gives up what it does not need: its user, its network, and the import of anything more."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class _SealedImports:
    """Finds no module, and says on standard error which one was asked for: a rehearsal has missed it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name not in self._told:
            self._told.add(name)
            os.write(2, f"the module {name} was to be imported after the privilege was given up\n".encode())
        raise ModuleNotFoundError(f"No module named {name!r}: it has to be imported before the privilege is given up", name=name)


def seal_imports() -> None:
    """From now on only what Python has built in can be imported.

    The user that a process becomes may not be able to read the program, or Python's own library: a clone in a folder of mode 0700 is
    enough. So that this shows everywhere and not only there, nothing is read from the disk any more.
    """
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _SealedImports()]


def drop_privileges(uid: int, parent: int, *, gid: int | None = None) -> None:
    """Become `uid` (and `gid`, by default the same number) for good, without anything to import, and end when `parent` does."""
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
    """From now on this process has a network without a way out; a listener that it holds stays where it was made."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot leave the network")


def die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends; at once when it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
