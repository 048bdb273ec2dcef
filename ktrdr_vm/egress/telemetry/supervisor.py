"""The guard's supervisor for telemetry: starts the relay and the sender, notifies them of the run, and collects what
they count.

The guard waits for neither of them, and restarts one that ends like every child: telemetry never delays DNS or the
proxy, and never ends the guard. The two are connected by a pipe. A restarted process has a new pipe, so the other one
is ended too, as soon as it serves, and gets the other end.
"""

from __future__ import annotations

import contextlib
import json
import select
import selectors
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.supervised_child import SERVES, SupervisedChild
from ktrdr_vm.egress.telemetry.messages import Asked, Counted, encode
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process

# Seconds between lines of the ledger.
WRITE_EVERY = 30.0
# Messages of a child that are read in one poll.
_MOST_AT_ONCE = 32
_OTHER = {"relay": "sender", "sender": "relay"}
_Reply = dict[str, Any]


class Telemetry:
    """For a profile without telemetry: nothing listens, and nothing is counted."""

    parts: dict[str, SupervisedChild] = {}
    operations: dict[str, Callable[[_Reply], _Reply]] = {}

    def poll(self) -> None:
        """Read what was counted, and write it to the ledger every WRITE_EVERY seconds."""

    def write(self, asked: float = 0) -> None:
        """Write what was counted since the last time. With `asked`, request the current counts first, and wait at most
        that many seconds for them."""


def open_telemetry(
    config: dict[str, Any], ledger: Ledger, selector: selectors.BaseSelector, listen: Callable[[], socket.socket]
) -> Telemetry:
    """`config` is guard.json's; `listen` makes the listener for the guest."""
    return TelemetrySupervisor(config, ledger, selector, listen()) if config.get("telemetry") else Telemetry()


class TelemetrySupervisor(Telemetry):
    """For a guard whose profile has telemetry."""

    def __init__(
        self,
        config: dict[str, Any],
        ledger: Ledger,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config["telemetry"] | {"instance_id": config["instance_id"]}
        self._directory = str(Path(config["ledger"]).with_name("guard"))
        self._ledger = ledger
        self._clock = clock
        self._listener = listener
        self._channels: dict[str, socket.socket] = {}
        self._pipes: dict[str, socket.socket] = {}
        """Ends of a pipe for a child that is to be started, by its role; the other child has the other end."""
        self._serving: set[str] = set()
        self._counts: dict[str, int] = {}
        self._written = clock() - WRITE_EVERY
        self._config["run_id"] = self._find_run()
        self.operations = {"run_began": self._begin_run}
        # The relay reads the guest's bytes. Its messages must not trigger the guard's loop, so it is polled.
        self.parts = {
            role: SupervisedChild(
                f"the telemetry {role}",
                partial(self._start, role),
                partial(self._read_counts, role),
                partial(self._serving.__contains__, role),
                selector,
                lambda said: ledger.write("guard", "note", message=said),
                clock,
                is_polled=True,
            )
            for role in _OTHER
        }

    def _find_run(self) -> str:
        """The run in the journal, with which a restarted guard continues."""
        from ktrdr_vm.host.journal import read_journal

        with contextlib.suppress(KtrdrError):
            journal = read_journal(Path(self._config["journal"]))
            return journal.run_id if journal is not None else ""
        return ""

    def _begin_run(self, request: _Reply) -> _Reply:
        """Attribute what arrives from now on to another run of the same instance."""
        self._config["run_id"] = str(request["run_id"])[:100]
        for role, channel in self._channels.items():
            try:
                channel.send(encode(Asked(self._config["run_id"])))
            except OSError:
                # A child that cannot be notified must not continue with the earlier run. Its successor starts with the
                # new one.
                self.parts[role].kill()
        return {"ok": True}

    def poll(self) -> None:
        for role, part in self.parts.items():
            self._read_counts(role)
            if role in self._serving and role in self._pipes:
                # Its pipe leads to a process that has ended.
                part.kill()
        if self._clock() - self._written >= WRITE_EVERY:
            self.write()

    def _start(self, role: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start a separate program, which contains nothing of the guard's memory. Its configuration is the first packet
        of its channel."""
        self._serving.discard(role)
        pipe = self._pipes.pop(role, None)
        if pipe is None:
            pipe, other = socket.socketpair()
            if (earlier := self._pipes.pop(_OTHER[role], None)) is not None:
                earlier.close()
            self._pipes[_OTHER[role]] = other
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with pipe, theirs:
            descriptors = [theirs.fileno(), pipe.fileno(), *([self._listener.fileno()] if role == "relay" else [])]
            ours.setblocking(False)
            ours.send(json.dumps(self._config).encode())
            words = [self._directory, role, *map(str, descriptors)]
            child = process.start_module(
                "ktrdr_vm.egress.telemetry.child",
                words,
                pass_fds=descriptors,
                streams=process.Streams(stderr=subprocess.PIPE),
                new_session=False,
            )
        self._channels[role] = ours
        return child, ours

    def _read_counts(self, role: str, asked: float = 0) -> None:
        """Read the messages of a child. With `asked`, request its counts, and wait at most that many seconds for them.

        The relay reads the guest's bytes: its messages are bounded in number and time, and invalid counts are
        discarded.
        """
        channel = self._channels.get(role)
        if channel is None:
            return
        end = self._clock() + asked
        with contextlib.suppress(OSError, ValueError):
            if asked:
                channel.send(encode(Asked()))
            for _ in range(_MOST_AT_ONCE):
                select.select([channel], [], [], max(0.0, end - self._clock()))
                if self._take(role, channel.recv(65536)) and asked:
                    break

    def _take(self, role: str, said: bytes) -> bool:
        """Process one message. True if it answers a request."""
        if said == SERVES:
            self._serving.add(role)
            return False
        if not said:
            raise ConnectionResetError("it has ended")
        try:
            counted = Counted.from_json(json.loads(said))
        except (ValueError, RecursionError):
            return False
        for name, count in counted.counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
        return counted.told

    def write(self, asked: float = 0) -> None:
        for role in self.parts:
            self._read_counts(role, asked)
        self._written = self._clock()
        if self._counts:
            counts, self._counts = self._counts, {}
            self._ledger.write(
                "telemetry", "note", name=self._config["collector"]["host"], rule=self._config["run_id"], **counts
            )
