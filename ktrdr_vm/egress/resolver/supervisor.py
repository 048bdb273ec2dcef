"""The guard's supervisor for the resolver: starts it, sends it the grants, and checks everything that it sends."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.child_process import WaitingChild, start_child
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.resolved_addresses import Given
from ktrdr_vm.egress.resolver.messages import AllowReply, Count, Grants, Note, parse_resolver_message
from ktrdr_vm.errors import KtrdrError


class ResolverSupervisor:
    """`listeners` are the resolver's sockets: UDP and TCP for the guest, and UDP for the proxy.

    `config` is its policy and the owner's exceptions. `waiting` is a process that was started already, for the next
    `start`.
    """

    channel: socket.socket | None = None
    waiting: WaitingChild | None = None

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        listeners: tuple[socket.socket, socket.socket, socket.socket],
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
        self._outdated = False

    def start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the process. Returns it and the channel of its messages."""
        config = {**self._config, **self._grants().to_json()}
        child, self.waiting = self.waiting or start_child(self._directory, "resolver"), None
        child.serve(config, self._listeners, self._uid)
        self.channel, self._outdated = child.channel, False
        return child.started, self.channel

    def _grants(self) -> Grants:
        return Grants([[grant, policy.to_json()] for grant, policy in self._granting.rules.grants])

    def grants_changed(self) -> None:
        self._outdated = True
        self.notify()

    def notify(self) -> None:
        """Send the grants if they have changed. A resolver that is too busy gets them at the next poll; sets and proxy
        have them already."""
        if not self._outdated or self.channel is None:
            return
        # Between two processes the channel is closed, and the next process starts with the current grants.
        with contextlib.suppress(OSError):
            self._send(self._grants())
            self._outdated = False

    def _send(self, message: Grants | AllowReply) -> None:
        assert self.channel is not None
        self.channel.send(json.dumps(message.to_json()).encode())

    def take(self, packet: bytes) -> None:
        """Process one message: a decision for the ledger, a count, or addresses to open, which are checked again."""
        try:
            message = parse_resolver_message(packet)
            if isinstance(message, Note):
                self._ledger.write(message.kind, message.verdict, **message.fields)
            elif isinstance(message, Count):
                self._ledger.write("dns", "deny", rule=message.rule, count=message.count)
            else:
                accepted = self._sets.allow(message.name, list(message.addresses), message.ttl)
                self._send(AllowReply(message.number, tuple(accepted)))
                self._given.learn(message.name, accepted, message.ttl)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            KtrdrError,
            OSError,
        ) as error:
            self._ledger.write(
                "guard", "note", message=f"the resolver's request was refused: {type(error).__name__}: {error}"[:300]
            )
            with contextlib.suppress(Exception):
                # The refusal is sent, so that the guest's query is answered, without an address.
                self._send(AllowReply(int(json.loads(packet)["number"]), ()))
