"""`DIRECTORY ROLE CHANNEL`: the guard's resolver or its inbox, a process without privileges.

It handles one request of its own, which imports all modules, and waits on the channel for its user, its configuration
and its listeners. It drops its privileges, and handles another request, which checks that everything is still readable.
Then it notifies the guard that it serves.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback as traceback  # prints the error at the end; imported before the privileges are dropped
from typing import Any, NamedTuple

from ktrdr_vm.egress.supervised_child import SERVES
from ktrdr_vm.host.owner import forbid_cores
from ktrdr_vm.host.privileges import die_with, drop_privileges, leave_network


class _Given(NamedTuple):
    uid: int
    config: dict[str, Any]
    listeners: list[socket.socket]


# Each encoding that `json.loads` detects in bytes. Python imports an encoding at its first use.
_ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
    "latin-1",
    "ascii",
)


def main() -> None:
    role, channel, parent = sys.argv[2], socket.socket(fileno=int(sys.argv[3])), os.getppid()
    forbid_cores()
    die_with(parent)
    for encoding in _ENCODINGS:
        json.loads('{"name": "é"}'.encode(encoding, "replace").decode(encoding))
    "name.example".encode("idna")
    if role == "resolver":
        from ktrdr_vm.egress.resolver.process import rehearse_resolver, run_resolver

        rehearse_resolver()
        if (given := _receive(channel)) is None:
            return
        drop_privileges(given.uid, parent)
        rehearse_resolver()
        channel.send(SERVES)
        run_resolver(given.config, given.listeners[0], given.listeners[1], given.listeners[2], channel)
    else:
        from ktrdr_vm.escalation.inbox import rehearse_inbox, run_inbox

        rehearse_inbox()
        if (given := _receive(channel)) is None:
            return
        leave_network()
        drop_privileges(given.uid, parent)
        rehearse_inbox()
        channel.send(SERVES)
        run_inbox(given.listeners[0], channel)


def _receive(channel: socket.socket) -> _Given | None:
    """Wait for what the guard gives; None if the guard has ended."""
    uid, descriptors, _, _ = socket.recv_fds(channel, 32, 8)
    if not uid:
        return None
    with os.fdopen(descriptors[0], "rb") as file:
        config = json.load(file)
    return _Given(int(uid), config, [socket.socket(fileno=one) for one in descriptors[1:]])
