"""virtiofsd, which serves one folder to one QEMU over a socket.

As root of the host, libvirt starts it. In a world this program does: libvirt 9.0 crashes when it hot-plugs a virtiofs
device without cgroups, and QEMU, another user of the world, must be able to open the socket.
"""

from __future__ import annotations

import time
from pathlib import Path

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.host.rights import QEMU_USER

# Debian 12 has it in the package of QEMU, Debian 13 in a separate one.
PLACES = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
START_LIMIT = 20.0
_POLL = 0.02


def find_virtiofsd() -> Path | None:
    return next((path for path in PLACES if path.exists()), None)


def serve(folder: Path, socket: Path) -> None:
    """Serve `folder` at `socket`, which the group of QEMU may open, until QEMU closes the connection."""
    program = find_virtiofsd()
    if program is None:
        raise HostError(
            "virtiofsd is not installed, and mounts need it", where=str(PLACES[-1]), hint="apt-get install virtiofsd"
        )
    socket.unlink(missing_ok=True)
    started = process.start(
        [program, f"--socket-path={socket}", f"--socket-group={QEMU_USER}", "-o", f"source={folder}"]
    )
    end = time.monotonic() + START_LIMIT
    while not socket.is_socket():
        if started.poll() is not None or time.monotonic() > end:
            started.kill()
            raise ProvisionError(
                "virtiofsd does not serve the mount", where=str(folder), hint="`ktrdr-vm doctor` checks the host"
            )
        time.sleep(_POLL)
