"""What the guard gives its children: sockets that are bound already, and no privilege."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path

from ktrdr_vm.egress.control import short_name

_IP_FREEBIND = 15
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def drop_privileges(uid: int, parent: int) -> None:
    """Become `uid` for good, without a way back, and end when `parent` does."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.chdir("/")
    die_with(parent)


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
    made.listen(8)
    return made
