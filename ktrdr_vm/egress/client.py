"""The client of a running guard: one JSON object as the request and one as the reply, over a Unix socket that only the
owner can open."""

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

# A request contains at most one secret of 64 KiB in base64; a reply may contain all of them.
MAX_REQUEST = 128 * 1024
MAX_REPLY = 32 * 1024 * 1024
# Time limits, in seconds, of replies for which the guard waits for its resolver, and for its proxy.
JUDGE_LIMIT, BROKER_LIMIT = 20.0, 15.0


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A path of a Unix socket that always fits: the kernel accepts 107 bytes, and an instance_id alone may have 63."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def read_line(connection: socket.socket, most: int) -> bytes:
    """Read up to the end of the line or of the stream. ValueError beyond `most` bytes."""
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
    """Send one request of `GuardClient`, and return the reply. `timeout` is in seconds. ProvisionError if the guard
    does not answer or refuses the request."""
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
            f"the guard refused: {reply['error']}",
            where=str(directory),
            hint="guard.log beside the socket contains the details",
        )
    return reply


@dataclass(frozen=True)
class Standing:
    """A grant that applies, and the seconds until its expiry."""

    id: str
    rule: EgressRule
    seconds: float


@dataclass(frozen=True)
class HeldCredentials:
    """Names of the brokered secrets that the guard holds, and of those that a gate has opened. `told` is True if the
    proxy has the current state."""

    held: tuple[str, ...]
    open: tuple[str, ...]
    told: bool


class GuardClient:
    """The guard whose folder is `directory`. One method for each operation; ProvisionError if the guard refuses it or
    does not answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _ask(self, op: str, *, timeout: float = 5, **fields: Any) -> dict[str, Any]:
        return ask_guard(self._directory, op, timeout=timeout, **fields)

    def status(self) -> dict[str, Any]:
        """Its pid, those of its children, and `parts`: the pid of each, whether it serves, and the reason of its last
        end."""
        return self._ask("status")

    def flush(self) -> None:
        """Poll all parts, and write everything that was counted to the ledger."""
        self._ask("flush")

    def judge(self, name: str, address: str, port: int) -> dict[str, Any]:
        """The verdict on a connection; `name` may be empty."""
        return self._ask("judge", timeout=JUDGE_LIMIT, name=name, address=address, port=port)

    # -- grants -----------------------------------------------------------------------------------------------------

    def grant(self, grant_id: str, rule: EgressRule, seconds: float) -> Standing:
        """Allow the instance to reach `rule` for `seconds`. `rule.reason` is recorded. The same id and rule again set a
        new expiry.

        ProvisionError also for a rule that may not be granted, such as a reserved address.
        """
        return _standing(self._ask("grant", seconds=seconds, **Grant(grant_id, rule, 0).to_json())["grant"])

    def revoke(self, grant_id: str) -> bool:
        """End a grant now, with every connection that it allowed. False if no grant with this id applies."""
        return bool(self._ask("revoke", id=grant_id)["revoked"])

    def list_grants(self) -> tuple[Standing, ...]:
        """The grants that apply now, the earliest expiry first."""
        return tuple(_standing(row) for row in self._ask("grants")["grants"])

    # -- the revision -----------------------------------------------------------------------------------------------

    def find_revision(self) -> str:
        """The current revision, as `str(Revision)`."""
        return str(self._ask("revision")["revision"])

    def follow_plan(self, digest: str) -> str:
        """Set the digest of the plan that the instance has from now on. Returns the revision."""
        return str(self._ask("plan", digest=digest)["revision"])

    # -- expiry of secrets and loans --------------------------------------------------------------------------------

    def expire_secret(self, name: str, path: str, seconds: float) -> None:
        """Remove the secret at `path` in the guest after `seconds`. The same name and path again set a new expiry."""
        self._ask("given", name=name, path=path, seconds=seconds)

    def expire_loan(self, loan: str, seconds: float, *, module: str, message: str) -> None:
        """Start `module` with the id of the loan after `seconds`, to remove the loan. `message` is recorded."""
        self._ask("given", name=loan, path="", module=module, seconds=seconds, message=message)

    def cancel_expiry(self, name: str, path: str = "") -> None:
        """Cancel an expiry, because the secret or the loan was removed. A loan has no path."""
        self._ask("gone", name=name, path=path)

    # -- values to be masked ----------------------------------------------------------------------------------------

    def add_value(self, name: str, value: bytes) -> None:
        """Have every run of the instance mask this value, at most 64 KiB."""
        self._ask("value_add", name=name, value=base64.b64encode(value).decode())

    def list_values(self, *, have: int = 0, reader: str = "") -> tuple[tuple[tuple[str, bytes], ...], int]:
        """The delivered values by name, after the first `have`, and the number of all values. A `reader` is a run that
        continues to poll."""
        reply = self._ask("value_list", have=have, reader=reader)
        return tuple((str(name), base64.b64decode(value)) for name, value in reply["values"]), int(reply["count"])

    def count_unread(self) -> int:
        """The number of runs of the instance that do not have every value yet."""
        return int(self._ask("value_unread")["unread"])

    # -- brokered secrets -------------------------------------------------------------------------------------------

    def give_credential(self, name: str, value: str) -> None:
        """Have the proxy add this header value to requests."""
        self._ask("broker_give", timeout=BROKER_LIMIT, name=name, value=value)

    def take_credential(self, name: str) -> None:
        """Remove it from the guard and from the proxy."""
        self._ask("broker_take", timeout=BROKER_LIMIT, name=name)

    def list_credentials(self) -> HeldCredentials:
        reply = self._ask("broker_list", timeout=BROKER_LIMIT)
        return HeldCredentials(tuple(reply["held"]), tuple(reply["open"]), bool(reply["told"]))

    # -- the run ----------------------------------------------------------------------------------------------------

    def pass_gate(self, gate: str) -> None:
        """Report that a gate has passed: the brokered secrets that waited for it are opened."""
        self._ask("gate_passed", gate=gate)

    def begin_gates(self) -> None:
        """Report that no gate of this run has passed yet: the brokered secrets that wait for one are closed."""
        self._ask("gates_began", timeout=BROKER_LIMIT)

    def begin_run(self, run_id: str) -> None:
        """Telemetry that arrives from now on belongs to this run."""
        self._ask("run_began", run_id=run_id)


def _standing(row: dict[str, Any]) -> Standing:
    return Standing(row["id"], parse_rule(row["rule"], row["reason"]), float(row["seconds"]))
