"""The guard: one process for each instance, through which every outbound byte passes, and which records every decision.

    guard (root: listeners, nft writer, ledger, children)
    ├── resolver (own user, no privileges): reads the guest's DNS
    ├── haproxy  (own user, no privileges): reads the guest's HTTP and TLS
    ├── inbox    (own user, no privileges): reads the guest's escalations, if the instance can escalate
    └── relay, sender (own users, no privileges): read the guest's telemetry, and send it to the owner's collector

It is a separate process because it must outlive the command that created the instance. It holds a lock while it runs;
that lock, and not a PID file, shows whether it runs. Its children end with it, and then nothing answers the guest: it
fails closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ktrdr_vm.egress.child_process import WaitingChild, start_proxy
from ktrdr_vm.egress.client import MAX_REQUEST, read_line
from ktrdr_vm.egress.connection_check import Judge
from ktrdr_vm.egress.delivered_values import DeliveredValues
from ktrdr_vm.egress.disk_watch import SpaceWatch
from ktrdr_vm.egress.flow_log import ProxyLog
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.proxy.resolved_addresses import Given
from ktrdr_vm.egress.resolver.supervisor import ResolverSupervisor
from ktrdr_vm.egress.supervised_child import ChannelChild, Source, SupervisedChild
from ktrdr_vm.egress.works import Works
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.name_servers import find_upstreams
from ktrdr_vm.host.nft import list_table
from ktrdr_vm.host.on_link import find_on_link
from ktrdr_vm.plan.guard_interface import DNS_PORT, INBOX_PORT, OTLP_PORT

if TYPE_CHECKING:
    from ktrdr_vm.egress.escalations import EscalationSupervisor

POLL = 1.0


class Guard:
    """The main loop. The constructor stores and connects what is already open, `start` starts the guard, and `run`
    serves until it is stopped."""

    def __init__(self, works: Works, resolver: WaitingChild | None = None) -> None:
        config, ledger, sets, proxy = works.config, works.ledger, works.sets, works.proxy
        self.works = works
        self.directory = works.directory
        self.config = config
        self.sets, self.ledger, self.selector = sets, ledger, works.selector
        self.watch, self.deadlines, self.brokers = works.watch, works.deadlines, works.brokers
        self.link, self.telemetry = works.link, works.telemetry
        self.proxy_control = proxy
        self.running = True
        self.proxy: subprocess.Popen[bytes] | None = None
        self.resolver_config = {"policy": works.policy, "exceptions": config["exceptions"]}
        self.space = SpaceWatch(works.directory, works.domain, ledger)
        self.values = DeliveredValues()
        self.given = Given(proxy)
        self.granting = Granting(
            works.book,
            works.rules,
            sets,
            proxy,
            self.given,
            ledger,
            changed=self._grants_changed,
            kill_proxy=self._kill_proxy,
        )
        self.resolver = ResolverSupervisor(
            works.directory,
            self.resolver_config,
            works.dns,
            int(config["resolver_uid"]),
            sets,
            self.granting,
            self.given,
            ledger,
        )
        self.resolver.waiting = resolver
        self.judge = Judge(config["gateway"], find_services(config), sets, proxy, self.granting)
        self.proxy_log = ProxyLog(ledger, sets, self.granting, proxy)
        self.escalations = self._make_escalation_supervisor()
        self.parts = self._make_parts()

    def start(self) -> None:
        """Start the resolver, and take over what an earlier guard has left. The other children are started in `run`."""
        # It asks nobody before `run` answers it.
        self.parts["resolver"].poll()
        with self.sets.together():
            self.sets.set_upstreams(find_upstreams())
            self._close_on_link()
            self._take_up_elements()

    def run(self) -> None:
        wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.selector.register(wakeup_read, selectors.EVENT_READ, lambda: self._reap(wakeup_read))
        self.selector.register(self.works.control, selectors.EVENT_READ, self._serve_control)
        self._poll_parts()
        self.telemetry.poll()
        self.ledger.write("guard", "note", message="started")
        next_poll = time.monotonic() + POLL
        while self.running:
            waits = (one.seconds_to_start for one in self.parts.values())
            patience = min(max(0.0, next_poll - time.monotonic()), self.granting.seconds_to_next_end, *waits)
            for key, _ in self.selector.select(patience):
                callback: Callable[[], None] = key.data
                callback()
            self.granting.end_due()
            if any(not one.seconds_to_start for one in self.parts.values()):
                self._poll_parts()
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + POLL
        self._poll()
        self._end_children()
        self.ledger.write("guard", "note", message="stopped")
        self.ledger.close()

    def _take_up_elements(self) -> None:
        """Keep the addresses open that an earlier guard had opened, if it had the same rules. Its grants are kept in
        any case."""
        rules = json.dumps(self.resolver_config, sort_keys=True)
        before = self.directory / "elements.of"
        if before.exists() and before.read_text() == rules:
            self.sets.adopt(list_table(self.config["table"], self.config["namespace"]) or [])
            self.granting.start(afresh=False)
        else:
            self.granting.start(afresh=True)
            # Not synced: neither it nor the table outlives a reboot, and an incomplete file never equals the rules.
            before.touch(mode=0o600)
            before.write_text(rules)

    def _close_on_link(self) -> None:
        for allowed, network in self.sets.set_on_link(find_on_link()):
            self.ledger.write(
                "guard",
                "note",
                message=f"{network} is a network of this host: it stays closed, though {allowed} is allowed",
            )

    def _stop(self) -> None:
        self.running = False

    # -- children ---------------------------------------------------------------------------------------------------

    def _note(self, said: str) -> None:
        self.ledger.write("guard", "note", message=said)

    def _make_parts(self) -> dict[str, SupervisedChild]:
        answers, selector, note = self.proxy_control.answers, self.selector, self._note
        parts = {
            "resolver": ChannelChild("the resolver", self.resolver.start, self.resolver.take, selector, note),
            "proxy": SupervisedChild("the proxy", self._start_proxy, self._read_proxy_log, answers, selector, note),
        }
        if (inbox := self.escalations) is not None:
            parts["inbox"] = ChannelChild("the escalation inbox", inbox.start, inbox.answer, selector, note)
        return parts | self.telemetry.parts

    def _start_proxy(self) -> tuple[subprocess.Popen[bytes], Source]:
        self.given.proxy_starts()
        self.proxy_log.proxy_starts()
        self.proxy = start_proxy(self.directory / "proxy.cfg", self.works.proxy_sockets, int(self.config["proxy_uid"]))
        assert self.proxy.stdout is not None
        self.brokers.proxy_started()
        return self.proxy, self.proxy.stdout

    def _make_escalation_supervisor(self) -> EscalationSupervisor | None:
        """The supervisor of the inbox; None if the instance cannot escalate."""
        inbox = self.works.inbox
        if inbox is None:
            return None
        from ktrdr_vm.egress.escalations import EscalationSupervisor

        user, group = self.config["owner"]
        owner = (int(user), int(group))
        return EscalationSupervisor(
            self.directory,
            inbox.store,
            inbox.listener,
            int(self.config["inbox_uid"]),
            owner,
            self.ledger,
            self.granting,
        )

    def _reap(self, wakeup: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
        if self.escalations is not None:
            self.escalations.reap()
        self._poll_parts()

    def _poll_parts(self) -> None:
        if self.running:
            for part in self.parts.values():
                part.poll()

    def _end_children(self) -> None:
        self.telemetry.write()
        for part in self.parts.values():
            part.end()

    def _kill_proxy(self) -> None:
        """Kill the proxy. It is restarted when its end is detected."""
        self.parts["proxy"].kill()

    def _grants_changed(self) -> None:
        self.resolver.grants_changed()

    # -- polling ----------------------------------------------------------------------------------------------------

    def _read_proxy_log(self) -> bool:
        assert self.proxy is not None and self.proxy.stdout is not None
        return self.proxy_log.read(self.proxy.stdout.fileno())

    def _keep_connections(self) -> None:
        """Keep connections open whose name has moved to other addresses: a long transfer may complete."""
        late = self.sets.late
        if late:
            with contextlib.suppress(KtrdrError):
                self.sets.keep({(one.address, one.port) for one in self.proxy_control.list_by_address()} & late)

    def _poll(self) -> None:
        self.link.poll()
        with contextlib.suppress(KtrdrError):  # the table is missing; the watch loads it again
            self.sets.set_upstreams(find_upstreams())
            self._close_on_link()
        self.granting.end_due()
        self.granting.poll()
        self._keep_connections()
        self.given.poll()
        self.proxy_log.count_lost()
        self.watch.poll()
        self.space.poll()
        self.deadlines.poll()
        self.resolver.notify()
        self.brokers.notify()
        self.telemetry.poll()

    # -- requests of commands ---------------------------------------------------------------------------------------

    def _serve_control(self) -> None:
        connection, _ = self.works.control.accept()
        with connection:
            connection.settimeout(1)
            try:
                request = json.loads(read_line(connection, MAX_REQUEST))
                reply = self._answer_control(request)
            except (KtrdrError, ValueError) as error:
                reply = {"error": str(error)}
            except (OSError, KeyError, TypeError, AttributeError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(reply).encode() + b"\n")

    def _answer_control(self, request: dict[str, Any]) -> dict[str, Any]:
        self.granting.end_due()
        if request["op"] == "status":
            pids = {name: self.parts[name].pid for name in ("resolver", "proxy", *self.telemetry.parts)}
            parts = {part.name: part.describe() for part in self.parts.values()}
            return {"pid": os.getpid(), **pids, "parts": parts}
        if request["op"] == "flush":
            self._poll()
            self.telemetry.write(0.2)
            return {"ok": True}
        services = (self.granting, self.brokers, self.telemetry, self.deadlines, self.values, self.works.revision)
        operations = {name: one for service in services for name, one in service.operations.items()} | {
            "judge": self.judge.judge
        }
        if request["op"] in operations:
            return operations[request["op"]](request)
        return {"error": f"unknown request {request['op']!r}"}


def find_services(config: dict[str, Any]) -> dict[int, str]:
    """The ports of the gateway that serve the guest, each with the kind of its lines in the ledger."""
    found = {DNS_PORT: "dns"}
    if config["escalations"]:
        found[INBOX_PORT] = "escalation"
    if config["telemetry"]:
        found[OTLP_PORT] = "telemetry"
    return found | {int(route["port"]): "broker" for route in config["brokers"]}
