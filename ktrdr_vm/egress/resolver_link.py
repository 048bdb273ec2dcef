"""The guard's end of the resolver: starts it, tells it what is granted, and believes nothing that it says."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.children import start_child
from ktrdr_vm.egress.given import Given
from ktrdr_vm.egress.granting import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.sets import AllowSets
from ktrdr_vm.errors import KtrdrError


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
                kind, verdict, fields = message["note"]
                if kind == "dns" and verdict in ("allow", "deny"):
                    self._ledger.write("dns", verdict, **{str(key): value for key, value in fields.items()})
                return
            if "count" in message:
                rule, count = message["count"]
                self._ledger.write("dns", "deny", rule="rate" if rule == "rate" else "suppressed", count=int(count))
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
