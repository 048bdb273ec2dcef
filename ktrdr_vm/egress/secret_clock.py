"""The times of delivered secrets, kept by the guard: it outlives the command that delivered them, and the guest cannot stop its clock.

When one is over the secret is taken out of the guest through the agent's channel. A hostile guest has its copy by then; that is why
a secret is short-lived at its source. The guest's own timer stands behind this one, for a guest without an agent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.durable import write_durably

# Overwritten where it lies, so that the pages that are freed, and may be saved, do not hold it.
TAKE = """set -u
systemctl stop "ktrdr-secret-$NAME.timer" 2>/dev/null
[ ! -f "$TARGET" ] || dd if=/dev/zero of="$TARGET" bs="$(stat -c %s -- "$TARGET")" count=1 conv=notrunc status=none
rm -f -- "$TARGET"
"""
# Seconds after which a guest that did not answer is asked again, and how often.
RETRY_S, ATTEMPTS = 10.0, 6


@dataclass(frozen=True)
class Delivered:
    """A secret in the guest; `ends` is a moment of the boot's clock."""

    name: str
    path: str
    ends: float
    attempts: int = 0


class SecretClock:
    """`path` is a small file, so that a guard that was started again goes on counting. `take` starts the taking of one."""

    def __init__(
        self,
        path: Path,
        domain: str,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = boottime,
        take: Callable[[str, Delivered], subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self._path = path
        self._domain = domain
        self._ledger = ledger
        self._clock = clock
        self._take = take or start_taking
        self._boot_id = read_boot_id()
        self._secrets = {one.name: one for one in self._read()}
        self._taking: dict[str, tuple[Delivered, subprocess.Popen[bytes]]] = {}

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {"secret_delivered": self._delivered, "secret_gone": self._gone}

    def look(self) -> None:
        """At every look of the guard: begin with what is over, tell how it went with what was begun."""
        for name, (one, child) in list(self._taking.items()):
            code = child.poll()
            if code is not None:
                del self._taking[name]
                self._tell(one, taken=code == 0)
        now = self._clock()
        for one in list(self._secrets.values()):
            if one.ends <= now and one.name not in self._taking:
                self._taking[one.name] = (one, self._take(self._domain, one))

    def _tell(self, one: Delivered, *, taken: bool) -> None:
        if self._secrets.get(one.name) != one:
            return  # delivered anew meanwhile, or gone
        if not taken and one.attempts + 1 < ATTEMPTS:
            self._secrets[one.name] = Delivered(one.name, one.path, self._clock() + RETRY_S, one.attempts + 1)
            return
        del self._secrets[one.name]
        self._save()
        said = "it was taken out of the guest" if taken else "the guest's agent does not answer, and only its own timer is left"
        self._ledger.write("guard", "note", rule="secret", name=one.name, message=f"the time of a secret is over: {said}")

    def _delivered(self, request: dict[str, Any]) -> dict[str, Any]:
        one = Delivered(str(request["name"]), str(request["path"]), self._clock() + float(request["seconds"]))
        self._secrets[one.name] = one
        self._save()
        return {"ok": True}

    def _gone(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._secrets.pop(str(request["name"]), None) is not None:
            self._save()
        return {"ok": True}

    def _read(self) -> list[Delivered]:
        """Of another boot there is none: secrets live in a guest's memory, and it ended with the host."""
        try:
            data = json.loads(self._path.read_bytes())
            return [Delivered(**row) for row in data["secrets"]] if data["boot_id"] == self._boot_id else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            message = "the times of secrets cannot be read; the guest's own timers are left"
            self._ledger.write("guard", "note", rule="secret", message=message)
            return []

    def _save(self) -> None:
        rows = [asdict(one) for one in self._secrets.values()]
        write_durably(self._path, (json.dumps({"boot_id": self._boot_id, "secrets": rows}) + "\n").encode())


def start_taking(domain: str, one: Delivered) -> subprocess.Popen[bytes]:
    """In a process of its own: a guest may take its time to answer, and the guard has others to serve."""
    return process.start_module("ktrdr_vm.egress.secret_clock", [domain, one.name, one.path], stderr=2)


def take(domain: str, name: str, path: str) -> bool:
    """Ask the guest's agent to take one secret away; did it?"""
    from ktrdr_vm.host.libvirt import Libvirt

    libvirt = Libvirt(patience=0)
    arguments = {"path": "/bin/sh", "arg": ["-c", TAKE], "env": [f"TARGET={path}", f"NAME={name}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
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
    """`DOMAIN NAME PATH`. Its exit code is its answer."""
    raise SystemExit(0 if take(*sys.argv[1:4]) else 1)
