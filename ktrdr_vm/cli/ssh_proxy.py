"""`ktrdr-vm proxy ID`: the ProxyCommand of OpenSSH. It connects to the guest's SSH port, which only its namespace can
reach.

Every connection waits for it, so it imports neither click nor libvirt.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

from ktrdr_vm.errors import GuestError, UsageError
from ktrdr_vm.host import netns
from ktrdr_vm.identity import SSH_SUFFIX, parse_instance_id
from ktrdr_vm.plan.guard_interface import GUEST

SSH_PORT = 22
_LIMIT = 10.0
_CHUNK = 1 << 16


def connect_streams(instance_id: str, *, pass_descriptor: bool = False) -> None:
    """Carry standard input and output to the guest until either side ends.

    With `pass_descriptor`, the connection itself is sent over standard output, which OpenSSH makes a socket with
    `ProxyUseFdpass`.
    """
    connection = _connect(instance_id)
    if pass_descriptor:
        with socket.socket(fileno=os.dup(1)) as client:
            socket.send_fds(client, [b"\0"], [connection.fileno()])
        return
    connection.settimeout(None)
    threading.Thread(target=_send, args=(connection,), daemon=True).start()
    with contextlib.suppress(OSError):
        while data := connection.recv(_CHUNK):
            _write(data)


def _connect(instance_id: str) -> socket.socket:
    identity = parse_instance_id(instance_id.removesuffix(SSH_SUFFIX))
    try:
        return netns.connect(identity.namespace, (GUEST, SSH_PORT), _LIMIT)
    except OSError as error:
        _refuse_suspended(identity.instance_id)
        raise GuestError(
            f"the guest does not accept an SSH connection: {error.strerror or error}",
            where=instance_id,
            hint=f"`ktrdr-vm status {instance_id}` shows its state, `ktrdr-vm logs {instance_id}` its console",
        ) from None


def _refuse_suspended(name: str) -> None:
    from ktrdr_vm.host.paths import find_home

    # It is removed before a resumed VM runs.
    if find_home().instance(name).saved.exists():
        raise UsageError(f"{name} is suspended", where=name, hint=f"`ktrdr-vm resume {name}` starts it")


def _send(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, _CHUNK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]
