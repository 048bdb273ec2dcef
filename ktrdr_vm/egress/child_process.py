"""Starts the children of the guard, with sockets that are already bound."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import short_name
from ktrdr_vm.host import process
from ktrdr_vm.host.netns import make_socket
from ktrdr_vm.host.privileges import die_with
from ktrdr_vm.world.layout import make_entry

_IP_FREEBIND = 15


def bind_early(kind: socket.SocketKind, address: str, port: int, namespace: str = "") -> socket.socket:
    """A listener on an address that may not exist yet: the tap, which has the address, is created after the guard."""
    made = make_socket(namespace, kind)
    made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if kind == socket.SOCK_STREAM:
        # Connections of an earlier listener may linger. Not for datagrams: a second socket would receive those of the
        # first.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    if kind == socket.SOCK_STREAM:
        made.listen(256)
    return made


def listen_unix(path: Path) -> socket.socket:
    """A Unix socket that only its owner can open."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_name(path) as name:
        made.bind(name)
    path.chmod(0o600)
    made.listen(64)
    return made


@dataclass(frozen=True)
class WaitingChild:
    """A child that loads its modules and waits for its listeners. It ends with this end of its channel."""

    started: subprocess.Popen[bytes]
    channel: socket.socket

    def serve(self, config: Mapping[str, Any], listeners: tuple[socket.socket, ...], uid: int) -> None:
        """Let it become `uid`, and serve. OSError if it has ended; it is reaped then."""
        with os.fdopen(os.memfd_create("config"), "w+b") as file:
            file.write(json.dumps(config).encode())
            file.seek(0)
            try:
                socket.send_fds(self.channel, [b"%d" % uid], [file.fileno(), *(one.fileno() for one in listeners)])
            except OSError:
                self.channel.close()
                self.started.kill()
                self.started.wait()
                raise
        self.channel.setblocking(False)


def start_child(directory: Path, role: str) -> WaitingChild:
    """Start a child, with a pipe as its standard error.

    The child is a separate program and not a fork: a fork would contain the memory of the guard, including credentials,
    and the guard would have to import the modules of the child.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        started = process.start_module(
            "ktrdr_vm.egress.child_main",
            [directory, role, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            streams=process.Streams(stderr=subprocess.PIPE),
            new_session=False,
        )
    return WaitingChild(started, ours)


def start_proxy(configuration: Path, listeners: Mapping[str, socket.socket], uid: int) -> subprocess.Popen[bytes]:
    """Start HAProxy as `uid`. Its configuration refers to the listeners by the names of environment variables. It
    writes its log to standard output."""
    parent = os.getpid()
    # In a user namespace (`world`), the user of the proxy cannot enter the home directory that contains the
    # configuration.
    in_view = make_entry(uid)
    started = process.start(
        [*in_view, "haproxy", "-db", "-f", configuration],
        environment={name: str(one.fileno()) for name, one in listeners.items()},
        pass_fds=[one.fileno() for one in listeners.values()],
        streams=process.Streams(stdout=subprocess.PIPE, stderr=subprocess.PIPE),
        owner=None if in_view else (uid, uid),
        in_child=lambda: die_with(parent),
        new_session=False,
    )
    assert started.stdout is not None
    os.set_blocking(started.stdout.fileno(), False)
    with contextlib.suppress(OSError):
        # Buffers some seconds of a flood. If the host does not permit this size, lost lines are counted.
        fcntl.fcntl(started.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    return started
