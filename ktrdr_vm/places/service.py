"""The operations of a place on the host where its spool is. `serve` offers them to a client, and `local` calls them.

Every operation takes and returns JSON values, may be repeated, and names requests by id. The spool belongs to the user
of this process, so that no request of another user can be named.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.accelerator import EMULATOR
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.process import find_program
from ktrdr_vm.places.engine import NOT_LISTED, Engine
from ktrdr_vm.places.request import Request, parse_request
from ktrdr_vm.places.request_state import RequestState
from ktrdr_vm.places.secret_values import parse_values
from ktrdr_vm.places.spool import Spool

SCHEMA = 1
# Bytes of a file in one message, before base64.
PIECE = 256 * 1024
MOST_STATES = 5000
# Requests or files in one message: a loaded host answers it in seconds.
MOST_TOGETHER = 50
# Seconds without a sign of a request whose job is gone: a shared file system shows a new file this late.
_GONE = 120.0

Check = Callable[[Request, Path], None]
"""Refuses a request that cannot run here, from its folder, with a KtrdrError."""


class Service:
    """The operations by name, for one spool and one engine."""

    def __init__(
        self, spool: Spool, engine: Engine, home: Home, check: Check, instances: Callable[[], list[dict[str, Any]]]
    ) -> None:
        self._spool = spool
        self._engine = engine
        self._home = home
        self._check = check
        self._instances = instances
        self._operations: dict[str, Callable[..., Any]] = {
            "facts": self.facts,
            "missing": self.missing,
            "nodes": self.nodes,
            "bundles": self.bundles,
            "begin": self.begin,
            "put": self.put,
            "commit": self.commit,
            "receive": self.receive,
            "start": self.start,
            "script": self.script,
            "states": self.states,
            "files": self.files,
            "read": self.read,
            "contents": self.contents,
            "cancel": self.cancel,
            "instances": self.instances,
        }

    def call(self, operation: str, **words: Any) -> Any:
        """The result of an operation. UsageError for an unknown one, and for words that it does not take."""
        found = self._operations.get(operation)
        if found is None:
            raise UsageError(
                f"there is no operation {operation!a:.60}",
                where="serve",
                hint="use the same version of ktrdr-vm at both ends",
            )
        try:
            return found(**words)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UsageError(
                f"{operation} does not take this: {error}", where="serve", hint="this is a bug in ktrdr-vm: report it"
            ) from None

    def facts(self) -> dict[str, Any]:
        """What this host is, and what it has."""
        folder = next(path for path in (self._home.root, *self._home.root.parents) if path.exists())
        return {
            "version": version("ktrdr-vm"),
            "schema": SCHEMA,
            "node": platform.node(),
            "system": platform.system(),
            "architecture": platform.machine(),
            "user": os.geteuid(),
            "home": str(self._home.root),
            "spool": str(self._spool.root),
            "free": shutil.disk_usage(folder).free,
            "time": time.time(),
            "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
            "emulator": str(find_program(EMULATOR) or ""),
            **self._engine.describe(),
        }

    def missing(self) -> dict[str, Any]:
        return {"missing": self._engine.find_missing()}

    def nodes(self) -> dict[str, Any]:
        return {"nodes": self._engine.list_nodes()}

    def bundles(self) -> dict[str, Any]:
        return {"bundles": [asdict(one) for one in self._spool.bundles.list_offers()]}

    def begin(self, request_id: str, bundles: dict[str, str] | None = None) -> dict[str, Any]:
        have = self._spool.begin(request_id, bundles)
        return {"complete": have is None, "have": have or {}}

    def put(self, request_id: str, name: str, offset: int, data: str) -> dict[str, int]:
        return {"size": self._spool.put(request_id, name, offset, base64.b64decode(data, validate=True))}

    def commit(self, request_id: str) -> dict[str, Any]:
        request = self._spool.commit(request_id)
        try:
            self._check(request, self._spool.request(request_id))
        except KtrdrError:
            # Refused before it is started: nothing of it is kept.
            if not self._spool.count_attempts(request_id):
                shutil.rmtree(self._spool.request(request_id))
            raise
        return {"request_id": request.request_id}

    def receive(self, requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Small requests, each whole in this message but for the bundles that are here."""
        for one in requests[:MOST_TOGETHER]:
            request_id = str(one["request_id"])
            if self._spool.begin(request_id, one["bundles"]) is None:
                continue
            for name, data in one["files"].items():
                self._spool.put(request_id, name, 0, base64.b64decode(data, validate=True))
            self.commit(request_id)
        return {}

    def start(self, request_ids: Sequence[str], values: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start requests, with the values of the secrets that come with them, by request and name, in base64."""
        requests = [self._spool.read(one) for one in request_ids]
        sent = {
            one.request_id: parse_values((values or {}).get(one.request_id), one)
            for one in requests
            if one.sent_secrets
        }
        self._engine.start(self._spool, requests, sent)
        return {}

    def script(self, requests: Sequence[dict[str, Any]]) -> dict[str, str]:
        """What would be submitted for requests that are not sent."""
        parsed = [parse_request(json.dumps(one).encode(), "script") for one in requests[:MOST_STATES]]
        return {"script": self._engine.render_script(self._spool, parsed)}

    def states(self, request_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """The states of requests, by default of all; those that were never received are left out."""
        known = set(self._spool.list_ids())
        chosen = sorted(known) if request_ids is None else [one for one in request_ids if one in known]
        states = [self._spool.state(one) for one in chosen[-MOST_STATES:]]
        reasons = self._engine.explain(self._spool, states)
        said = [self._explain(one, reasons.get(one.request_id, "")) for one in states]
        return {"states": [one.to_json() for one in said]}

    def _explain(self, state: RequestState, reason: str) -> RequestState:
        if reason == NOT_LISTED:
            # It may have begun, or ended, since its files were read.
            state = self._spool.state(state.request_id)
            if state.state == "waiting" and self._spool.find_silence(state.request_id) > _GONE:
                why = f"{state.why or 'it never began'}; its job has ended, and output.log there may say why"
                return replace(state, state="lost", why=why, exit_code=4)
        return replace(state, why=reason or state.why) if state.state == "waiting" else state

    def files(self, request_id: str, attempt: int) -> dict[str, Any]:
        return {"files": [list(one) for one in self._spool.list_files(request_id, attempt)]}

    def read(self, request_id: str, attempt: int, name: str, offset: int) -> dict[str, str]:
        return {
            "data": (
                base64.b64encode(self._spool.read_piece(request_id, attempt, name, max(0, offset), PIECE)).decode(
                    "ascii"
                )
            )
        }

    def contents(self, request_id: str, attempt: int, names: Sequence[str]) -> dict[str, Any]:
        """The contents of small files: as many of the names, from the first, as one message holds."""
        found, left = {}, PIECE
        for name in names[:MOST_TOGETHER]:
            data = self._spool.read_piece(request_id, attempt, name, 0, left + 1)
            left -= len(data)
            if left < 0:
                break
            found[name] = base64.b64encode(data).decode("ascii")
        return {"contents": found}

    def cancel(self, request_ids: Sequence[str]) -> dict[str, Any]:
        """Mark all first: those that run stop at the same time, and the wait for one is the wait for all."""
        running = [state for state in map(self._spool.state, request_ids) if not state.has_ended]
        for state in running:
            self._spool.mark_cancelled(state.request_id)
        for state in running:
            self._engine.cancel(self._spool, state)
        return {}

    def find_way(self, instance_id: str) -> tuple[str, ...]:
        """Words before a program that let it run where an instance is. UsageError if none is known at a place of
        several hosts."""
        if self._engine.is_here:
            return ()
        for request_id in reversed(self._spool.list_ids()):
            state = self._spool.state(request_id)
            if state.instance_id == instance_id and state.state == "running":
                return self._engine.find_way(self._spool, request_id)
        raise UsageError(
            "no request of this instance runs here", where=instance_id, hint="`ktrdr-vm queue` lists the requests"
        )

    def instances(self) -> dict[str, Any]:
        return {"instances": self._instances()}
