"""The instance's egress process. It is started before the tap exists, so that it answers the guest's first DNS
query."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.revision import prepare_revision
from ktrdr_vm.errors import KtrdrError, ProvisionError
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.host.rights import find_open, set_rights
from ktrdr_vm.host.running import find_processes
from ktrdr_vm.instance.guard_status import find_faults, wait_serving
from ktrdr_vm.instance.resources.base import Resource
from ktrdr_vm.instance.waiting_guard import start_guard
from ktrdr_vm.plan.plan import canonical_json, plain
from ktrdr_vm.policy.load import read_collector_headers

STOP_LIMIT = 5.0

# The mode of files that the proxy's group may read.
PROXY = 0o440


class Guard(Resource):
    kind = "guard"
    isolates = True
    lane = "isolation"
    restores_plan = True

    @property
    def name(self) -> str:
        return str(self.target.paths.guard)

    def exists(self) -> bool:
        return self.target.paths.guard.exists() or bool(find_guards(self.target.paths.guard))

    def create(self) -> None:
        directory = self.target.paths.guard
        if is_locked(directory / "guard.lock"):
            if not self._stale():
                return
            self.stop()
        waiting = self.blueprint.waiting_guard or start_guard(directory)
        self._write_files()
        waiting.serve()

    def _write_files(self) -> None:
        directory, collector = self.target.paths.guard, self.blueprint.plan.collector
        if collector is not None:
            # The sender reads them itself; errors in them are reported now.
            read_collector_headers(collector)
        for name, (text, mode) in self._files().items():
            path = directory / name
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
                file.write(text)
            if mode == PROXY:
                set_rights(path, self.target.paths.home, group=_as_number(self.blueprint.allocation.proxy_uid))
        prepare_revision(directory, self.blueprint.plan.digest)

    def _stale(self) -> list[str]:
        """The files that differ from the plan: the running guard was started for an earlier one."""
        directory = self.target.paths.guard
        return [name for name, (text, _) in self._files().items() if not _holds(directory / name, text)]

    def _files(self) -> dict[str, tuple[str, int]]:
        """The files that it is started from, with modes."""
        blueprint = self.blueprint
        allocation, identity, facts = blueprint.allocation, self.target.identity, blueprint.plan.facts
        config = {
            "instance_id": identity.instance_id,
            "table": identity.table,
            "tap": identity.tap,
            "domain": identity.domain,
            "namespace": identity.namespace,
            "gateway": allocation.gateway,
            "loopback": allocation.loopback,
            "proxy_uid": allocation.proxy_uid,
            "resolver_uid": allocation.resolver_uid,
            "inbox_uid": allocation.inbox_uid,
            "exceptions": [[str(address), port] for address, port in facts.owner_reserved],
            "ledger": str(self.target.paths.ledger),
            "escalations": str(self.target.paths.escalations) if blueprint.plan.profile.asks else "",
            "owner": list(facts.owner),
            "telemetry": self._telemetry(),
            "brokers": [
                {"secret": route.secret, "port": route.port, "after": route.after} for route in blueprint.plan.routes
            ],
        }
        # Only the proxy's user reads its configuration and lists; the rest is the owner's.
        return {
            "guard.json": (canonical_json(config), 0o600),
            "egress.json": (blueprint.documents["egress.json"], 0o600),
            **{name: (blueprint.documents[name], 0o600) for name in ("ruleset.nft", "ruleset-host.nft")},
            "proxy.cfg": (blueprint.documents["proxy.cfg"], PROXY),
            **{name: (text, PROXY) for name, text in blueprint.plan.egress.name_lists.items()},
        }

    def _telemetry(self) -> dict[str, Any] | None:
        """The configuration of the relay and the sender. It contains no headers: the sender reads them from the owner's
        file."""
        plan, allocation = self.blueprint.plan, self.blueprint.allocation
        if plan.collector is None:
            return None
        return {
            "collector": plain(plan.collector),
            "environment": plan.profile.mode,
            "relay_uid": allocation.relay_uid,
            "sender_uid": allocation.sender_uid,
            "journal": str(self.target.paths.journal),
        }

    def verify(self) -> list[str]:
        """The differences. A part that has not reported yet that it serves is waited for, one that has ended only
        briefly."""
        try:
            status = wait_serving(self.target.paths.guard)
        except KtrdrError as error:
            return [error.message]
        stale = self._stale()
        differences = find_faults(status) + ([f"it runs with an earlier {', '.join(stale)}"] if stale else [])
        return differences + [
            f"others may open {one}" for one in find_open(self.target.paths.home, self.target.paths.guard)
        ]

    def remove(self) -> None:
        self.stop()
        directory = self.target.paths.guard
        if directory.exists():
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()

    def stop(self) -> None:
        """End its processes. Its folder stays, and with it the grants, which the next guard loads."""
        directory = self.target.paths.guard
        for number, patience in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, STOP_LIMIT)):
            running = find_guards(directory)
            if not running:
                break
            for pid in running:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            end = time.monotonic() + patience
            while find_guards(directory) and time.monotonic() < end:
                time.sleep(0.01)
        # A process that ends has no arguments any more before it releases its lock; the lock would make the next guard
        # seem to be started.
        end = time.monotonic() + STOP_LIMIT
        while is_locked(directory / "guard.lock") and time.monotonic() < end:
            time.sleep(0.01)
        if find_guards(directory) or is_locked(directory / "guard.lock"):
            raise ProvisionError("the guard does not end", where=self.name, hint=self.by_hand())

    def by_hand(self) -> str:
        pids = " ".join(str(pid) for pid in find_guards(self.target.paths.guard))
        return (f"kill -KILL {pids}; " if pids else "") + f"rm -r {self.target.paths.guard}"


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def find_guards(directory: Path) -> list[int]:
    """The guard of this folder and its children: all of them name the folder in their arguments."""
    marker = os.fsencode(directory)
    return find_processes(
        lambda words: any(word == marker or word.startswith(marker + b"/") for word in words) and _is_guard(words)
    )


def _is_guard(words: list[bytes]) -> bool:
    """A module of this program, of any version, or its proxy. Other programs that name the folder, such as `tail`, are
    not matched."""
    return any(word.startswith(b"ktrdr_vm.") for word in words) or words[0].endswith(b"haproxy")


def _as_number(uid: str | int) -> int:
    """The proxy's group has the number of its user; a user that is not allocated yet has none, which is -1."""
    return int(uid) if str(uid).isdigit() else -1
