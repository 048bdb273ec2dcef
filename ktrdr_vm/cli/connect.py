"""What the commands that connect to an instance share, whether it is on this host or at a place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def replace_process(words: Sequence[str]) -> NoReturn:
    """Replace this process by a program, whose path is the first word."""
    from ktrdr_vm.host.process import notify_observers
    from ktrdr_vm.host.program_call import ProgramCall

    notify_observers(ProgramCall(tuple(words), outcome="replaces this process"))
    sys.stdout.flush()
    os.execv(words[0], list(words))  # noqa: S606


def find_remote(source: str, destination: str) -> str:
    """The instance that a copy is from or to; empty unless exactly one of the two is in an instance."""
    remote = [
        place.partition(":")[0]
        for place in (source, destination)
        if ":" in place and "/" not in place.partition(":")[0]
    ]
    return remote[0] if len(remote) == 1 else ""


def check_copy(source: str, destination: str) -> str:
    """The instance. UsageError for what scp would say in its own words: no instance, two of them, or a path that is
    missing here."""
    from ktrdr_vm.errors import UsageError

    remote = find_remote(source, destination)
    if not remote:
        raise UsageError(
            "exactly one of SOURCE and DESTINATION must be in an instance",
            hint="use `ktrdr-vm cp INSTANCE_ID:PATH PATH` or the reverse",
        )
    local = Path(destination if ":" in source and source.partition(":")[0] == remote else source)
    if local == Path(source) and not os.path.lexists(local):
        raise UsageError("there is no such file on this host", where=source, hint="name a file or a folder that exists")
    if local == Path(destination) and not local.is_dir() and not local.absolute().parent.is_dir():
        raise UsageError(
            "there is no such folder on this host", where=str(local.absolute().parent), hint="create it first"
        )
    return remote


def parse_forward(text: str) -> tuple[int, str, int]:
    """Port of this host, the guest's host and port. UsageError for anything but [LOCAL:][HOST:]PORT."""
    from ktrdr_vm.errors import UsageError

    *before, last = text.split(":")
    local = before.pop(0) if before and _is_port(before[0]) else last
    host = before.pop(0) if before else "127.0.0.1"
    # Anything else ends in the words of OpenSSH, after the ports were announced.
    named = re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", host)
    if before or not named or not all(_is_port(part) and 0 < int(part) < 65536 for part in (local, last)):
        raise UsageError(
            f"{text!a} names no ports",
            hint="8000, 8001:8000, db:5432 or 15432:db:5432; a port is a number from 1 to 65535",
        )
    return int(local), host, int(last)


def _is_port(text: str) -> bool:
    # Not `isdigit`, which is also true of `²`.
    return re.fullmatch("[0-9]{1,9}", text) is not None


def require_free_port(port: int) -> None:
    """HostError when the loopback port is taken, before anything is promised."""
    import socket

    from ktrdr_vm.errors import HostError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise HostError(
                f"port {port} of this host cannot be used: {error.strerror}",
                where=f"127.0.0.1:{port}",
                hint="choose another one: `ktrdr-vm forward INSTANCE_ID LOCAL:PORT`",
            ) from None
