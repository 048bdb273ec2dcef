"""The expiries of secrets and loans, kept by the guard.

The guard outlives the command that delivered a secret or made a loan, and the guest cannot stop the guard's clock. An
expired secret is removed from the guest through the guest agent. A hostile guest has copied it by then, so a secret
should be short-lived at its source. The guest has a timer of its own that removes the secret where there is no agent.
An expired loan is removed by the program that was registered with it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.durable import write_durably

# Overwritten in place, so that freed pages, which may be saved, do not contain it. The guest's own timer is stopped
# last: if the file remains, that timer is the only thing left that can remove it.
TAKE = """set -u
status=0
if [ -f "$TARGET" ]; then
  size=$(stat -c %s -- "$TARGET")
  [ "$size" = 0 ] || dd if=/dev/zero of="$TARGET" bs="$size" count=1 conv=notrunc status=none || status=1
fi
rm -f -- "$TARGET" || status=1
[ ! -e "$TARGET" ] || status=1
[ "$status" != 0 ] || systemctl stop "ktrdr-secret-$NAME.timer" 2>/dev/null || true
exit "$status"
"""
# Seconds before a failed removal is repeated, the number of such attempts, and the seconds between later ones.
RETRY_S, ATTEMPTS, LATER_S = 10.0, 6, 300.0


@dataclass(frozen=True)
class Deadline:
    """`ends` is a time of the boot clock. `path` is that of a secret in the guest. A loan has no path, and the id of
    its escalation as its name.

    `module` is the program that removes the loan, as it was registered with the loan.
    """

    name: str
    path: str
    ends: float
    attempts: int = 0
    module: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Path and name, because a secret may have the name of an escalation."""
        return self.path, self.name

    @property
    def rule(self) -> str:
        """The name in the ledger."""
        return "secret" if self.path else f"loan:{self.name}"


class Deadlines:
    """`path` is a small file in the guard's folder, with which a restarted guard continues.

    `take` starts the removal of one secret or loan.
    """

    def __init__(
        self,
        path: Path,
        domain: str,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = boottime,
        take: Callable[[str, Path, Deadline], subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self._path = path
        self._domain = domain
        self._ledger = ledger
        self._clock = clock
        self._take = take or start_taking
        self._boot_id = read_boot_id()
        self._known = {one.key: one for one in self._read()}
        self._taking: dict[tuple[str, str], tuple[Deadline, subprocess.Popen[bytes]]] = {}

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {"given": self._given, "gone": self._gone}

    def poll(self) -> None:
        """Called at every poll of the guard: start the removal of what has expired, and process the results of
        removals."""
        for key, (one, child) in list(self._taking.items()):
            code = child.poll()
            if code is not None:
                del self._taking[key]
                self._finish(one, taken=code == 0)
        now = self._clock()
        for one in list(self._known.values()):
            if one.ends <= now and one.key not in self._taking:
                self._taking[one.key] = (one, self._take(self._domain, self._path.parent, one))

    def _finish(self, one: Deadline, *, taken: bool) -> None:
        if self._known.get(one.key) != one:
            return  # it has a new expiry, or was removed meanwhile
        attempts = one.attempts + 1
        if not taken and (attempts < ATTEMPTS or one.path):
            # The removal of a secret is repeated for as long as the instance exists.
            pause = RETRY_S if attempts < ATTEMPTS else LATER_S
            self._known[one.key] = replace(one, ends=self._clock() + pause, attempts=attempts)
            if attempts == ATTEMPTS:
                self._write(
                    one,
                    "the time of a secret is over: the guest does not remove it and is asked again; its own timer is"
                    " left",
                )
            return
        del self._known[one.key]
        # On a full disk the file keeps it, and a restarted guard only removes it once more.
        with contextlib.suppress(HostError):
            self._save()
        if one.path:
            self._write(one, "the time of a secret is over: it was removed from the guest")
        else:
            said = (
                "it was taken back"
                if taken
                else "the guest does not let go of all of it; what it keeps ends with the machine"
            )
            self._write(one, f"the time of what was lent is over: {said}")

    def _write(self, one: Deadline, message: str) -> None:
        self._ledger.write("guard", "note", rule=one.rule, name=one.name, message=message)

    def _given(self, request: dict[str, Any]) -> dict[str, Any]:
        one = Deadline(
            str(request["name"]),
            str(request["path"]),
            self._clock() + float(request["seconds"]),
            module=str(request.get("module", "")),
        )
        self._known[one.key] = one
        self._save()
        if not one.path:
            self._write(one, f"lent for {float(request['seconds']):g} s: {request['message']}")
        return {"ok": True}

    def _gone(self, request: dict[str, Any]) -> dict[str, Any]:
        one = self._known.pop((str(request["path"]), str(request["name"])), None)
        if one is not None:
            self._save()
            if not one.path:
                self._write(one, "taken back")
        return {"ok": True}

    def _read(self) -> list[Deadline]:
        """The stored expiries. Those of another boot are discarded: the VM with the secrets and loans ended with the
        host."""
        try:
            data = json.loads(self._path.read_bytes())
            return [Deadline(**row) for row in data["deadlines"]] if data["boot_id"] == self._boot_id else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            message = "the ends of secrets and loans cannot be read; the guest's own timers of secrets are left"
            self._ledger.write("guard", "note", rule="deadlines", message=message)
            return []

    def _save(self) -> None:
        rows = [asdict(one) for one in self._known.values()]
        write_durably(self._path, (json.dumps({"boot_id": self._boot_id, "deadlines": rows}) + "\n").encode())


def start_taking(domain: str, directory: Path, one: Deadline) -> subprocess.Popen[bytes]:
    """Start a removal in a separate process: a guest may answer slowly, and the guard must not wait."""
    if one.path:
        return process.start_module(
            "ktrdr_vm.egress.expiry", [domain, one.name, one.path], streams=process.Streams(stderr=2)
        )
    return process.start_module(one.module, [directory, one.name], streams=process.Streams(stderr=2))


def take(domain: str, name: str, path: str) -> bool:
    """Remove one secret through the guest agent. True if the agent reports success."""
    from ktrdr_vm.host.libvirt import Libvirt

    libvirt = Libvirt(patience=0)
    arguments = {
        "path": "/bin/sh",
        "arg": ["-c", TAKE],
        "env": [f"TARGET={path}", f"NAME={name}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    }
    started = libvirt.agent(domain, "guest-exec", arguments)
    pid = started.get("pid") if isinstance(started, dict) else None
    if not isinstance(pid, int):
        return False
    end = boottime() + RETRY_S
    while boottime() < end:
        status = libvirt.agent(domain, "guest-exec-status", {"pid": pid})
        if isinstance(status, dict) and status.get("exited") is True:
            return status.get("exitcode") == 0
        time.sleep(0.2)
    return False


def main() -> None:
    """`DOMAIN NAME PATH`. The exit code is 0 if the secret was removed."""
    raise SystemExit(0 if take(*sys.argv[1:4]) else 1)
