"""How commands talk to a running guard: one JSON object each way over its unix socket, which only the owner can
open."""

from __future__ import annotations

import base64
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
# Seconds for an answer of the guard that waits for its resolver, or for its proxy.
JUDGE_LIMIT, BROKER_LIMIT = 20.0, 15.0


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of a unix socket's place that always fits: the kernel takes 107 bytes, and an instance_id alone may have
    63."""
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
    """One request of `GuardClient`, and the reply. Seconds; a guard that does not answer is an error."""
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
        raise ProvisionError(
            f"the guard refused: {reply['error']}", where=str(directory), hint="look into guard.log beside the socket"
        )
    return reply


@dataclass(frozen=True)
class Standing:
    """A grant that holds, and for how many seconds more."""

    id: str
    rule: EgressRule
    seconds: float


@dataclass(frozen=True)
class HeldCredentials:
    """Names of the brokered secrets that the guard has and of those that a gate has opened; whether the proxy knows all
    of it."""

    held: tuple[str, ...]
    open: tuple[str, ...]
    told: bool


class GuardClient:
    """The guard whose folder is `directory`. A method for each operation; ProvisionError when it refuses, or does not
    answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _ask(self, op: str, *, timeout: float = 5, **fields: Any) -> dict[str, Any]:
        return ask_guard(self._directory, op, timeout=timeout, **fields)

    def status(self) -> dict[str, Any]:
        """Its pid, those of its children, and `parts`: each with its pid, whether it serves, and its last words."""
        return self._ask("status")

    def flush(self) -> None:
        """Write down everything that it knows."""
        self._ask("flush")

    def judge(self, name: str, address: str, port: int) -> dict[str, Any]:
        """What would happen to a connection; `name` may be empty."""
        return self._ask("judge", timeout=JUDGE_LIMIT, name=name, address=address, port=port)

    # -- grants -----------------------------------------------------------------------------------------------------

    def grant(self, grant_id: str, rule: EgressRule, seconds: float) -> Standing:
        """Let the instance reach `rule` for `seconds`. `rule.reason` is recorded. The same id and rule again sets a new
        expiry.

        A reserved address, for one, is refused.
        """
        return _standing(self._ask("grant", seconds=seconds, **Grant(grant_id, rule, 0).to_json())["grant"])

    def revoke(self, grant_id: str) -> bool:
        """End a grant now, with every flow that it allowed. False when there was none of that id (any more)."""
        return bool(self._ask("revoke", id=grant_id)["revoked"])

    def list_grants(self) -> tuple[Standing, ...]:
        """The grants that hold now, the one that ends first in front."""
        return tuple(_standing(row) for row in self._ask("grants")["grants"])

    # -- the revision -----------------------------------------------------------------------------------------------

    def find_revision(self) -> str:
        """The revision now, as `str(Revision)`."""
        return str(self._ask("revision")["revision"])

    def follow_plan(self, digest: str) -> str:
        """The instance has this plan from now on. The revision."""
        return str(self._ask("plan", digest=digest)["revision"])

    # -- expiry of secrets and loans --------------------------------------------------------------------------------

    def expire_secret(self, name: str, path: str, seconds: float) -> None:
        """Remove the secret at `path` in the guest after so many seconds. The same name and path again sets a new
        expiry."""
        self._ask("given", name=name, path=path, seconds=seconds)

    def expire_loan(self, loan: str, seconds: float, *, module: str, message: str) -> None:
        """Start `module` with the loan's id after so many seconds, to take it back. `message` is recorded."""
        self._ask("given", name=loan, path="", module=module, seconds=seconds, message=message)

    def cancel_expiry(self, name: str, path: str = "") -> None:
        """What was to expire is gone. A loan has no path."""
        self._ask("gone", name=name, path=path)

    # -- values to be masked ----------------------------------------------------------------------------------------

    def add_value(self, name: str, value: bytes) -> None:
        """Have every run of the instance mask this value, at most 64 KiB."""
        self._ask("value_add", name=name, value=base64.b64encode(value).decode())

    def list_values(self, *, have: int = 0, reader: str = "") -> tuple[tuple[tuple[str, bytes], ...], int]:
        """The delivered values by name, after the first `have`; and how many there are. A `reader` is a run that goes
        on asking."""
        reply = self._ask("value_list", have=have, reader=reader)
        return tuple((str(name), base64.b64decode(value)) for name, value in reply["values"]), int(reply["count"])

    def count_unread(self) -> int:
        """How many runs of the instance do not have every value yet."""
        return int(self._ask("value_unread")["unread"])

    # -- brokered secrets -------------------------------------------------------------------------------------------

    def give_credential(self, name: str, value: str) -> None:
        """Have the proxy add this header value to requests."""
        self._ask("broker_give", timeout=BROKER_LIMIT, name=name, value=value)

    def take_credential(self, name: str) -> None:
        """Take it from the guard and from the proxy."""
        self._ask("broker_take", timeout=BROKER_LIMIT, name=name)

    def list_credentials(self) -> HeldCredentials:
        reply = self._ask("broker_list", timeout=BROKER_LIMIT)
        return HeldCredentials(tuple(reply["held"]), tuple(reply["open"]), bool(reply["told"]))

    # -- the run ----------------------------------------------------------------------------------------------------

    def pass_gate(self, gate: str) -> None:
        """A gate has passed: the brokered secrets that waited for it are open."""
        self._ask("gate_passed", gate=gate)

    def begin_run(self, run_id: str) -> None:
        """What telemetry arrives from now on belongs to this run."""
        self._ask("run_began", run_id=run_id)


def _standing(row: dict[str, Any]) -> Standing:
    return Standing(row["id"], parse_rule(row["rule"], row["reason"]), float(row["seconds"]))
