"""How commands talk to a running guard: one JSON object each way over its unix socket, which only the owner can open."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.grant import Grant, parse_rule
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.profile.egress_rule import EgressRule

# A request holds one secret of 64 KiB in base64 at most, a reply all of them.
MAX_REQUEST = 128 * 1024
MAX_REPLY = 32 * 1024 * 1024


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of a unix socket's place that always fits: the kernel takes 107 bytes, and an instance_id alone may have 63."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def read_line(connection: socket.socket, most: int) -> bytes:
    """What comes up to a line's end or the stream's; ValueError beyond `most` bytes."""
    raw = bytearray()
    while not raw.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            break
        raw += piece
        if len(raw) > most:
            raise ValueError(f"more than {most} bytes in a line")
    return bytes(raw)


def ask_guard(directory: Path, op: str, *, timeout: float = 5, **fields: Any) -> dict[str, Any]:
    """Ask the guard of the instance. Seconds; a guard that does not answer is an error."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            with short_name(directory / "control.sock") as name:
                connection.connect(name)
            connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            reply: dict[str, Any] = json.loads(read_line(connection, MAX_REPLY))
    except (OSError, ValueError) as error:
        raise ProvisionError(
            f"the guard does not answer: {error}",
            where=str(directory),
            hint="nothing leaves the instance while it is down; `ktrdr-vm status` shows it",
        ) from None
    if "error" in reply:
        raise ProvisionError(f"the guard refused: {reply['error']}", where=str(directory), hint="look into guard.log beside the socket")
    return reply


# -- grants


@dataclass(frozen=True)
class Standing:
    """A grant that holds, and for how many seconds more."""

    id: str
    rule: EgressRule
    seconds: float


def grant(directory: Path, grant_id: str, rule: EgressRule, seconds: float) -> Standing:
    """Let the instance whose guard's folder is `directory` reach `rule` for `seconds`. `rule.reason` is recorded.

    The same id and rule again sets a new end. ProvisionError when the guard refuses, such as a reserved address, or is not there.
    """
    request = Grant(grant_id, rule, 0).to_json()
    return _standing(ask_guard(directory, "grant", seconds=seconds, **request)["grant"])


def revoke(directory: Path, grant_id: str) -> bool:
    """End a grant now, with every flow that it allowed. False when there was none of that id (any more)."""
    return bool(ask_guard(directory, "revoke", id=grant_id)["revoked"])


def list_grants(directory: Path) -> tuple[Standing, ...]:
    """The grants that hold now, the one that ends first in front."""
    return tuple(_standing(row) for row in ask_guard(directory, "grants")["grants"])


def _standing(row: dict[str, Any]) -> Standing:
    return Standing(row["id"], parse_rule(row["rule"], row["reason"]), float(row["seconds"]))
