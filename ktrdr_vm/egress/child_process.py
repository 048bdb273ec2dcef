"""What the guard gives its children: sockets that are bound already, and no privilege."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import short_name
from ktrdr_vm.host import process

_IP_FREEBIND = 15
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
        raise ModuleNotFoundError(f"No module named {name!r}: a child of the guard imports before it gives up its privilege", name=name)


def seal_imports() -> None:
    """From now on only what Python has built in can be imported.

    The user that a child becomes may not be able to read the program, or Python's own library: a clone in a folder of mode 0700 is enough.
    So that this shows everywhere and not only there, nothing is read from the disk any more.
    """
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _SealedImports()]


def drop_privileges(uid: int, parent: int) -> None:
    """Become `uid` for good, without a way back or anything to import, and end when `parent` does."""
    seal_imports()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
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


def bind_early(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A listener on an address that may not exist yet: the tap, and with it the address, comes after the guard."""
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    made.bind((address, port))
    if kind == socket.SOCK_STREAM:
        made.listen(256)
    return made


def listen_unix(path: Path) -> socket.socket:
    """A unix socket that its owner alone can open."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_name(path) as name:
        made.bind(name)
    path.chmod(0o600)
    made.listen(64)
    return made


def start_child(
    directory: Path, role: str, config: Mapping[str, Any], listeners: tuple[socket.socket, ...], uid: int
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child that becomes `uid`, with the listeners and a channel. Returns it, with a pipe as its standard error, and our end.

    A program of its own and no fork, which would have what the guard knows, credentials too; and the guard need not import what it is for.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, os.fdopen(os.memfd_create("config"), "w+b") as file:
        file.write(json.dumps(config).encode())
        file.seek(0)
        descriptors = [theirs.fileno(), file.fileno(), *(one.fileno() for one in listeners)]
        words: list[str | Path] = [directory, role, str(uid), *map(str, descriptors)]
        started = process.start_module("ktrdr_vm.egress.child_main", words, pass_fds=descriptors, stderr=subprocess.PIPE, new_session=False)
    ours.setblocking(False)
    return started, ours


def start_proxy(configuration: Path, listeners: Mapping[str, socket.socket], uid: int) -> subprocess.Popen[bytes]:
    """HAProxy as `uid`; its configuration finds the listeners by the names of variables. Its log comes on its standard output."""
    parent = os.getpid()
    started = process.start(
        ["haproxy", "-db", "-f", configuration],
        environment={name: str(one.fileno()) for name, one in listeners.items()},
        pass_fds=[one.fileno() for one in listeners.values()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=uid,
        group=uid,
        in_child=lambda: die_with(parent),
        new_session=False,
    )
    assert started.stdout is not None
    os.set_blocking(started.stdout.fileno(), False)
    with contextlib.suppress(OSError):
        # Room for some seconds of a flood; where the host does not give it, what is lost is counted.
        fcntl.fcntl(started.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    return started
