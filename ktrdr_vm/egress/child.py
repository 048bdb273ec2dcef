"""`python -m ktrdr_vm.egress.child DIRECTORY ROLE UID CHANNEL CONFIG LISTENER...`: a child of the guard that is started again.

The first of its kind is a fork, which is quicker. By the time that it ends the guard may hold credentials, and a fork would have them too.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys

from ktrdr_vm.egress.children import drop_privileges
from ktrdr_vm.egress.resolver_process import run_resolver
from ktrdr_vm.escalation.inbox import run_inbox


def main() -> None:
    role, uid, descriptors, parent = sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]], os.getppid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = socket.socket(fileno=descriptors[0])
    with os.fdopen(descriptors[1], "rb") as file:
        config = json.load(file)
    listeners = [socket.socket(fileno=one) for one in descriptors[2:]]
    # Codecs are imported when they are first used, and the user that is to come may not be able to read them.
    "name.example".encode("idna")
    drop_privileges(uid, parent)
    if role == "resolver":
        run_resolver(config, listeners[0], listeners[1], channel)
    else:
        run_inbox(listeners[0], channel)


if __name__ == "__main__":
    main()
