"""The guard's end of telemetry: starts the relay and the sender, tells them which run it is, and keeps what they count.

Neither is waited for, and one that ends is started again with a pause: telemetry never holds up DNS or the proxy, and never ends the guard.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.child_process import bind_early
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.supervised_child import LastWords
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.plan.guard_interface import OTLP_PORT

# Seconds between lines of the ledger, and between two starts.
WRITE_EVERY = 30.0
START_EVERY = 5.0
# What a child may count, and so what a line of the ledger can have.
COUNTS = ("accepted", "refused", "refused_rate", "refused_queue", "claims", "sent", "dropped", "bytes_out")
_MOST_AT_ONCE = 32
_Reply = dict[str, Any]


class Telemetry:
    """Where the profile has none: nothing listens, and nothing is counted."""

    pids: dict[str, int] = {}
    operations: dict[str, Callable[[_Reply], _Reply]] = {}

    def look(self) -> None:
        """Hear what was counted, start what has ended."""

    def write(self, asked: float = 0) -> None:
        """Write down what was counted since the last time; with `asked` what was counted until now, waiting so many seconds for it."""

    def describe(self) -> dict[str, dict[str, Any]]:
        """For `status`: each part with its pid, whether it serves, and its last words where it does not."""
        return {}

    def end(self) -> None:
        """End the children."""


def open_telemetry(config: dict[str, Any], ledger: Ledger) -> Telemetry:
    """`config` is guard.json's."""
    return TelemetryDesk(config, ledger) if config.get("telemetry") else Telemetry()


class TelemetryDesk(Telemetry):
    """One for a guard whose profile has telemetry."""

    def __init__(self, config: dict[str, Any], ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config["telemetry"] | {"instance_id": config["instance_id"]}
        self._directory = str(Path(config["ledger"]).with_name("guard"))
        self._ledger = ledger
        self._clock = clock
        self._listener = bind_early(socket.SOCK_STREAM, config["gateway"], OTLP_PORT)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._channels: dict[str, socket.socket] = {}
        self._words: dict[str, LastWords] = {}
        self._said: dict[str, str] = {}
        self._serving: set[str] = set()
        self._ends = 0
        self._counts: dict[str, int] = {}
        self._started = self._written = -START_EVERY
        self._config["run_id"] = self._find_run()
        self.operations = {"run_began": self._begin_run}

    @property
    def pids(self) -> dict[str, int]:  # type: ignore[override]
        return {role: child.pid for role, child in self._children.items()}

    def _find_run(self) -> str:
        """The run that the journal knows; a guard that is started again goes on with it."""
        from ktrdr_vm.host.journal import read_journal

        with contextlib.suppress(KtrdrError):
            journal = read_journal(Path(self._config["journal"]))
            return journal.run_id if journal is not None else ""
        return ""

    def _begin_run(self, request: _Reply) -> _Reply:
        """Another run of the same instance: what arrives from now on is its."""
        self._config["run_id"] = str(request["run_id"])[:100]
        try:
            for channel in self._channels.values():
                channel.send(json.dumps({"run_id": self._config["run_id"]}).encode())
        except OSError:
            # One that does not hear it must not go on with the earlier run; those that follow know the new one.
            self.end()
        return {"ok": True}

    def look(self) -> None:
        self._hear()
        for words in self._words.values():
            words.read()
        ended = {role: child.returncode for role, child in self._children.items() if child.poll() is not None}
        if ended:
            self._said = {role: f"it ended with {code}: {self._words[role].last or 'no message'}" for role, code in ended.items()}
            self._ends += 1
            self.end()
            said = "; ".join(f"the {role}: {said}" for role, said in self._said.items())
            self._ledger.write("guard", "note", message=f"the telemetry relay ended and is started again: {said}"[:600])
        if not self._children and self._clock() - self._started >= START_EVERY:
            self._started = self._clock()
            try:
                self._start()
            except (OSError, KtrdrError) as error:
                self.end()
                self._ledger.write("guard", "note", message=f"telemetry could not be started: {error}"[:300])
        if self._clock() - self._written >= WRITE_EVERY:
            self.write()

    def describe(self) -> dict[str, dict[str, Any]]:
        serving = {role for role in self._serving if role in self._children and self._children[role].poll() is None}
        return {
            f"the telemetry {role}": {
                "pid": self.pids.get(role, 0),
                "serves": role in serving,
                "ends": self._ends,
                "said": "" if role in serving else self._said.get(role, ""),
            }
            for role in ("relay", "sender")
        }

    def _start(self) -> None:
        """Both, with a pipe between them. They are programs of their own: nothing of the guard's memory is in theirs."""
        relay_pipe, sender_pipe = socket.socketpair()
        with relay_pipe, sender_pipe:
            self._start_child("relay", relay_pipe, self._listener)
            self._start_child("sender", sender_pipe)

    def _start_child(self, role: str, *passed: socket.socket) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [theirs.fileno(), *(one.fileno() for one in passed)]
            self._channels[role] = ours
            ours.setblocking(False)
            ours.send(json.dumps(self._config).encode())
            words = [self._directory, role, *map(str, descriptors)]
            child = process.start_module(
                "ktrdr_vm.egress.telemetry.child", words, pass_fds=descriptors, stderr=subprocess.PIPE, new_session=False
            )
            assert child.stderr is not None
            self._children[role], self._words[role] = child, LastWords(f"the telemetry {role}", child.stderr)

    def _hear(self, asked: float = 0) -> None:
        """What they have said; with `asked` wait so many seconds for each to say it now.

        The relay reads the guest's bytes: what it says is bounded in number and time, and not believed beyond its range.
        """
        for role, channel in self._channels.items():
            end = self._clock() + asked
            with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
                if asked:
                    channel.send(b"{}")
                for _ in range(_MOST_AT_ONCE):
                    select.select([channel], [], [], max(0.0, end - self._clock()))
                    said = json.loads(channel.recv(65536))
                    for name, count in said.items():
                        if name == "serves":
                            self._serving.add(role)
                        if name in COUNTS and isinstance(count, int) and 0 < count < 2**40:
                            self._counts[name] = self._counts.get(name, 0) + count
                    if asked and "told" in said:
                        break

    def write(self, asked: float = 0) -> None:
        self._hear(asked)
        self._written = self._clock()
        if self._counts:
            counts, self._counts = self._counts, {}
            self._ledger.write("telemetry", "note", name=self._config["collector"]["host"], rule=self._config["run_id"], **counts)

    def end(self) -> None:
        self.write()
        for child in self._children.values():
            child.kill()
            child.wait()
        for channel in self._channels.values():
            channel.close()
        for words in self._words.values():
            words.close()
        self._children, self._channels, self._words, self._serving = {}, {}, {}, set()
