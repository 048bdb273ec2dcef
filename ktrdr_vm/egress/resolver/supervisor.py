"""The guard's end of the resolver: starts it, tells it what is granted, and believes nothing that it says."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.child_process import start_child
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.resolved_addresses import Given
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.report.ledger_row import check_fields

_NOTED = frozenset({"name", "address", "addresses", "ttl", "rule", "type", "message"})


class ResolverLink:
    """`listeners` are the resolver's UDP and TCP sockets, `config` its policy and the owner's exceptions."""

    channel: socket.socket | None = None

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        listeners: tuple[socket.socket, socket.socket],
        uid: int,
        sets: AllowSets,
        granting: Granting,
        given: Given,
        ledger: Ledger,
    ) -> None:
        self._directory = directory
        self._config = config
        self._listeners = listeners
        self._uid = uid
        self._sets = sets
        self._granting = granting
        self._given = given
        self._ledger = ledger
        self._untold = False
        self.serves = False

    def start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The process, and the channel that says when it has something to say."""
        self.serves = False
        config = {**self._config, **self._grants()}
        started, self.channel = start_child(self._directory, "resolver", config, self._listeners, self._uid)
        self._untold = False
        return started, self.channel

    def _grants(self) -> dict[str, Any]:
        return {"grants": [[grant, policy.to_json()] for grant, policy in self._granting.rules.grants]}

    def grants_changed(self) -> None:
        self._untold = True
        self.tell()

    def tell(self) -> None:
        """Say what it was not told yet. One that is too busy to listen hears it at the next look; sets and proxy have it already."""
        if not self._untold or self.channel is None:
            return
        # Between two lives of it the channel is closed, and the next one begins with what is granted then.
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(self._grants()).encode())
            self._untold = False

    def _note(self, kind: str, verdict: str, fields: dict[str, Any]) -> None:
        """A decision on a question. Of the ledger's fields it has these; time and identity are not its to say."""
        if kind != "dns" or verdict not in ("allow", "deny") or not fields.keys() <= _NOTED:
            raise ValueError(f"it has no {str(kind)[:20]!a} {str(verdict)[:20]!a} line with {str(sorted(fields))[:80]}")
        self._ledger.write("dns", verdict, **check_fields(fields))

    def _count(self, rule: str, count: int) -> None:
        if rule not in ("rate", "suppressed") or type(count) is not int or not 0 < count < 2**40:
            raise ValueError("it counts rate or suppressed, in whole numbers")
        self._ledger.write("dns", "deny", rule=rule, count=count)

    def serve(self) -> None:
        """Take one message: a decision for the ledger, a count, or addresses to open, which are judged again."""
        assert self.channel is not None
        try:
            packet = self.channel.recv(65536)
        except (BlockingIOError, ConnectionError):
            return
        if not packet:
            return  # it ended; SIGCHLD says so too
        try:
            message = json.loads(packet)
            if "serves" in message:
                self.serves = True
                return
            if "note" in message:
                self._note(*message["note"])
                return
            if "count" in message:
                self._count(*message["count"])
                return
            name, addresses, ttl = message["allow"]
            accepted = self._sets.allow(str(name), [str(address) for address in addresses], int(ttl))
            self.channel.send(json.dumps({"number": int(message["number"]), "accepted": accepted}).encode())
            self._given.learn(str(name), accepted, int(ttl))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, KtrdrError, OSError) as error:
            self._ledger.write("guard", "note", message=f"the resolver's request was refused: {type(error).__name__}: {error}"[:300])
            with contextlib.suppress(Exception):
                # Refused, and not silent: the guest's question is answered without an address.
                self.channel.send(json.dumps({"number": int(json.loads(packet)["number"]), "accepted": []}).encode())
