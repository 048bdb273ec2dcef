"""`DIRECTORY`: the process of a guard.

It loads its modules, and those of the resolver in another process, until a byte can be read from descriptor 0, and ends
if that is closed before. Descriptor 1 is a pipe, to which a line is written when it serves.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from ktrdr_vm.egress.child_process import start_child
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.owner import forbid_cores


def main() -> None:
    # No core dumps: the memory of the guard and of its children contains secrets.
    forbid_cores()
    directory = Path(sys.argv[1])
    # Before the modules of the guard: its own take longer. It ends with the guard.
    resolver = start_child(directory, "resolver")
    from ktrdr_vm.egress.guard import Guard
    from ktrdr_vm.egress.works import open_works

    if not os.read(0, 1):
        return
    lock = os.open(directory / "guard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        guard = Guard(open_works(directory), resolver)
        guard.start()
    except (KtrdrError, OSError) as error:
        # This is the last line of guard.log, which the program that started the guard shows.
        os.write(2, f"{error}\n".encode("utf-8", "backslashreplace"))
        return
    os.write(1, b"ready\n")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    guard.run()
