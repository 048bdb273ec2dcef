"""`DIRECTORY ROLE UID CHANNEL CONFIG LISTENER...`: the guard's resolver or its inbox, a process without privileges.

It handles one request of its own, which imports all modules, drops its privileges, and handles another one, which
checks that everything is still readable. Then it notifies the guard that it serves.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback as traceback  # prints the error at the end; imported before the privileges are dropped

from ktrdr_vm.egress.supervised_child import SERVES
from ktrdr_vm.host.owner import forbid_cores
from ktrdr_vm.host.privileges import drop_privileges, leave_network

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
    role, uid, descriptors, parent = sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]], os.getppid()
    forbid_cores()
    channel = socket.socket(fileno=descriptors[0])
    with os.fdopen(descriptors[1], "rb") as file:
        config = json.load(file)
    listeners = [socket.socket(fileno=one) for one in descriptors[2:]]
    for encoding in _ENCODINGS:
        json.loads('{"name": "é"}'.encode(encoding, "replace").decode(encoding))
    "name.example".encode("idna")
    if role == "resolver":
        from ktrdr_vm.egress.resolver.process import rehearse_resolver, run_resolver

        rehearse_resolver()
        drop_privileges(uid, parent)
        rehearse_resolver()
        channel.send(SERVES)
        run_resolver(config, listeners[0], listeners[1], listeners[2], channel)
    else:
        from ktrdr_vm.escalation.inbox import rehearse_inbox, run_inbox

        rehearse_inbox()
        leave_network()
        drop_privileges(uid, parent)
        rehearse_inbox()
        channel.send(SERVES)
        run_inbox(listeners[0], channel)
