"""The process of a guard before it serves: it loads its modules while the rest of the instance is prepared."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import ProvisionError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.instance.guard_status import START_LIMIT
from ktrdr_vm.users import find_configuration, in_user_namespace


@dataclass(frozen=True)
class WaitingGuard:
    """It does nothing until it may open its sockets, and ends with this process if that ends before."""

    directory: Path
    started: subprocess.Popen[bytes]

    def serve(self) -> None:
        """Let it read the files of its folder and serve. ProvisionError with its last words if it cannot."""
        started = self.started
        assert started.stdin is not None and started.stdout is not None
        with started.stdin as order, started.stdout as ready:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its log says why
                order.write(b"\n")
                order.flush()
            readable, _, _ = select.select([ready], [], [], START_LIMIT)
            if readable and os.read(ready.fileno(), 16):
                # Nothing waits for it from here on: it outlives this command, and init reaps it.
                started.returncode = 0
                return
        if started.poll() is None:
            started.kill()
        started.wait()
        log = (self.directory / "guard.log").read_text(errors="replace").strip()
        said = keep_end(log, 1000) or ("no message" if readable else f"it was not ready within {START_LIMIT:g} s")
        hint = "`ktrdr-vm doctor` checks HAProxy and nft" if readable else "check the load of the host, then try again"
        raise ProvisionError(f"the guard did not start: {said}", where=str(self.directory), hint=hint)


def start_guard(directory: Path) -> WaitingGuard:
    """Start the process for this folder, which is created, with the folder of the instance."""
    for path in (directory.parent, directory):
        path.mkdir(mode=0o711, exist_ok=True)
        path.chmod(0o711)
    log_file = os.open(
        directory / "guard.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(log_file, "ab") as log:
        started = process.start_module(
            "ktrdr_vm.egress.guard_main",
            [directory],
            environment=_name_configuration(),
            streams=process.Streams(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log),
        )
    return WaitingGuard(directory, started)


def _name_configuration() -> dict[str, str]:
    """In a world, the guard reads the policy of the person, whose home directory is not that of root."""
    return {"XDG_CONFIG_HOME": str(find_configuration().parent)} if in_user_namespace() else {}
