"""`DIRECTORY relay|sender CHANNEL PIPE [LISTENER]`: one of the two processes for telemetry.

It imports and reads what it needs, drops every privilege, and only then reads input. The first packet of the channel is
its configuration; each later one begins another run, or only requests the counts. After each later packet, and once a
second, it sends what it has counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import sys
import threading
import time
from dataclasses import replace
from typing import Any, get_args

from ktrdr_vm.egress.supervised_child import SERVES
from ktrdr_vm.egress.telemetry.messages import Asked, Counted, encode
from ktrdr_vm.egress.telemetry.otlp import PATHS, Encoding, OtlpError, Stamp, stamp_request
from ktrdr_vm.egress.telemetry.relay import Relay, run_relay
from ktrdr_vm.egress.telemetry.sender import Sender
from ktrdr_vm.host.owner import forbid_cores
from ktrdr_vm.host.privileges import drop_privileges, leave_network, lower_limit
from ktrdr_vm.policy.load import read_collector_headers
from ktrdr_vm.profile.collector import Collector

# Bytes of address space: a request of 2 MiB needs less than a tenth, whatever its content.
_MEMORY = 2 * 1024 * 1024 * 1024


def main() -> None:
    role, descriptors, parent = sys.argv[2], [int(word) for word in sys.argv[3:]], os.getppid()
    forbid_cores()
    channel = socket.socket(fileno=descriptors[0])
    pipe = socket.socket(fileno=descriptors[1])
    config: dict[str, Any] = json.loads(channel.recv(65536))
    stamp = Stamp(config["instance_id"], config["environment"], config["run_id"])
    _rehearse()
    if role == "relay":
        listener = socket.socket(fileno=descriptors[2])
        relay = Relay(pipe, stamp)
        leave_network()
        lower_limit(resource.RLIMIT_AS, _MEMORY)
        os.nice(5)
        drop_privileges(int(config["relay_uid"]), parent)
        _rehearse()
        channel.send(SERVES)
        _watch(channel, relay)
        run_relay(listener, relay)
    else:
        sender = _make_sender(config, stamp)
        drop_privileges(int(config["sender_uid"]), parent)
        _rehearse()
        channel.send(SERVES)
        _watch(channel, sender)
        sender.serve(pipe)


def _rehearse() -> None:
    """Execute once what imports modules at its first use: the unprivileged user may not be able to read them."""
    "collector.example".encode("idna")
    for encoding in get_args(Encoding):
        stamp_request(PATHS[0], encoding, b"{}" if encoding == "application/json" else b"", Stamp("", "", ""))
    with contextlib.suppress(OtlpError):
        stamp_request(PATHS[0], "application/json", b"\xff", Stamp("", "", ""))


def _make_sender(config: dict[str, Any], stamp: Stamp) -> Sender:
    collector = Collector(**config["collector"])
    context = ssl.create_default_context(cafile=collector.ca_file or None) if collector.scheme == "https" else None
    return Sender(collector, read_collector_headers(collector), context, stamp)


def _watch(channel: socket.socket, one: Relay | Sender) -> None:
    """In a thread: receive new runs, and send what was counted. The process ends when the guard ends, and the relay
    also when its pipe is broken."""

    def send_counts(*, asked: bool) -> None:
        counts = one.tally.take()
        if counts or asked:
            with contextlib.suppress(OSError):
                channel.send(encode(Counted(counts, told=asked)))

    def run() -> None:
        channel.settimeout(1.0)
        sent_at = time.monotonic()
        while not (isinstance(one, Relay) and one.broken):
            with contextlib.suppress(TimeoutError):
                packet = channel.recv(65536)
                if not packet:
                    break
                request = Asked.from_json(json.loads(packet))
                if request.run_id is not None:
                    one.stamp = replace(one.stamp, run_id=request.run_id)
                send_counts(asked=True)
            if time.monotonic() - sent_at >= 1.0:
                sent_at = time.monotonic()
                send_counts(asked=False)
        os._exit(1)

    threading.Thread(target=run, daemon=True).start()
