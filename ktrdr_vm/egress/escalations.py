"""The guard's supervisor for escalations: starts the unprivileged inbox, stores what arrives, notifies the owner, and
grants what is pre-approved."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from ktrdr_vm.egress.child_process import start_child
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.escalation.decision import is_preapproved
from ktrdr_vm.escalation.inbox_protocol import SubmitRequest, answer_request, parse_request
from ktrdr_vm.escalation.store import Answer, Escalation, EscalationStore
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import boottime, now, read_boot_id
from ktrdr_vm.policy.load import read_policy

# Maximum number of running processes of the owner's command, so that a guest with many requests cannot start many of
# them.
_MAX_HOOKS = 4


class EscalationSupervisor:
    """For a guard whose instance can escalate."""

    def __init__(
        self,
        directory: Path,
        store: EscalationStore,
        listener: socket.socket,
        uid: int,
        owner: tuple[int, int],
        ledger: Ledger,
        granting: Granting,
    ) -> None:
        self.store = store
        self.channel: socket.socket | None = None
        self._directory = directory
        self._listener = listener
        self._uid = uid
        self._owner = owner
        self._ledger = ledger
        self._granting = granting
        self._hooks: list[subprocess.Popen[bytes]] = []

    def start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the inbox as a child without privileges. Returns it and the channel of its requests."""
        child = start_child(self._directory, "inbox")
        child.serve({}, (self._listener,), self._uid)
        self.channel = child.channel
        return child.started, self.channel

    def answer(self, raw: bytes) -> None:
        """Answer one request of the inbox. An error in it is sent as the answer."""
        assert self.channel is not None
        try:
            request = parse_request(raw)
            if isinstance(request, SubmitRequest) and request.suppressed:
                self._ledger.write("escalation", "deny", rule="suppressed", count=request.suppressed)
            reply = answer_request(self.store, request, self._arrived)
        except (KtrdrError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reply = {"error": str(error)[:1000]}
        try:
            self.channel.send(json.dumps(reply).encode())
        except OSError as error:
            self._ledger.write("guard", "note", message=f"the inbox does not listen: {error}")

    def reap(self) -> None:
        """Release the processes of the owner's command that have ended."""
        self._hooks = [hook for hook in self._hooks if hook.poll() is None]

    def _arrived(self, one: Escalation) -> None:
        self._ledger.write("escalation", "note", rule=one.id, message=f"{one.packet.kind}: {one.packet.blocked}"[:300])
        try:
            policy = read_policy().escalations
        except KtrdrError as error:
            # It waits for an answer, like any other. The guest learns nothing of the host.
            self._ledger.write("escalation", "note", rule=one.id, message=f"without the policy: {error}"[:300])
            return
        if is_preapproved(one.packet, policy):
            try:
                self._approve(one)
            except (KtrdrError, ValueError) as error:
                # It waits for an answer, like any other escalation.
                self._ledger.write(
                    "escalation", "note", rule=one.id, message=f"could not be approved beforehand: {error}"[:300]
                )
        if policy.hook:
            self._start_hook(one, policy.hook)

    def _approve(self, one: Escalation) -> None:
        """Record the pre-approval, then grant it. No other answer is possible between the two."""
        reason, seconds = "approved beforehand by the owner's policy", one.packet.seconds
        with self.store.approving(one.id, Answer("policy", reason, now(), one.packet.request, seconds)) as settle:
            granted = self._granting.grant(
                {"id": one.id, "rule": one.packet.request, "seconds": seconds, "reason": reason}
            )
            settle((read_boot_id(), boottime() + float(granted["grant"]["seconds"])))

    def _start_hook(self, one: Escalation, command: tuple[str, ...]) -> None:
        """Start the owner's command with the packet on its standard input, and do not wait for it."""
        self.reap()
        if len(self._hooks) >= _MAX_HOOKS:
            self._ledger.write(
                "escalation",
                "note",
                rule=one.id,
                message=f"{_MAX_HOOKS} commands of the owner still run; this one was not told",
            )
            return
        content = os.memfd_create("escalation", os.MFD_CLOEXEC)
        try:
            os.write(content, json.dumps(self.store.find(one.id).to_json()).encode() + b"\n")
            os.lseek(content, 0, os.SEEK_SET)
            environment = {"KTRDR_INSTANCE_ID": one.instance_id, "KTRDR_ESCALATION": one.id}
            self._hooks.append(
                process.start(
                    list(command),
                    streams=process.Streams(stdin=content),
                    environment=environment,
                    owner=self._owner,
                    cwd=Path("/"),
                )
            )
        except (OSError, KtrdrError) as error:
            self._ledger.write(
                "escalation", "note", rule=one.id, message=f"the owner's command could not be started: {error}"[:300]
            )
        finally:
            os.close(content)
