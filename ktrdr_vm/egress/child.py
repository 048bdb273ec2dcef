"""`DIRECTORY ROLE UID CHANNEL CONFIG LISTENER...`: the guard's resolver or its inbox, a process without privilege."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys

from ktrdr_vm.egress.children import drop_privileges


def main() -> None:
    role, uid, descriptors, parent = sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]], os.getppid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = socket.socket(fileno=descriptors[0])
    with os.fdopen(descriptors[1], "rb") as file:
        config = json.load(file)
    listeners = [socket.socket(fileno=one) for one in descriptors[2:]]
    # Whatever is imported, codecs too, is imported now: the user that is to come may not be able to read it.
    "name.example".encode("idna")
    if role == "resolver":
        from ktrdr_vm.egress.resolver_process import run_resolver

        drop_privileges(uid, parent)
        run_resolver(config, listeners[0], listeners[1], channel)
    else:
        from ktrdr_vm.escalation.inbox import run_inbox

        drop_privileges(uid, parent)
        run_inbox(listeners[0], channel)
