"""Opens what a guard needs: its configuration, the sockets on which it serves, and the files with the state of an
earlier guard."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.child_process import bind_early, listen_unix
from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.egress.expiry import Deadlines
from ktrdr_vm.egress.grants.store import GrantBook
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.link import Link
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.egress.proxy.credentials import Brokers
from ktrdr_vm.egress.revision import RevisionKeeper
from ktrdr_vm.egress.rules import Rules, rules_from_json
from ktrdr_vm.egress.table_watch import TableWatch
from ktrdr_vm.egress.telemetry.supervisor import Telemetry, open_telemetry
from ktrdr_vm.plan.guard_interface import DNS_PORT, HTTP_PORT, INBOX_PORT, OTHER_PORT, OTLP_PORT, TLS_PORT

if TYPE_CHECKING:
    from ktrdr_vm.escalation.store import EscalationStore


@dataclass(frozen=True)
class Inbox:
    """The listener for escalations from the instance, and the store in which they are kept."""

    listener: socket.socket
    store: EscalationStore


@dataclass(frozen=True)
class Works:
    """Everything that is open before a guard is made. `config` and `policy` are guard.json and egress.json."""

    directory: Path
    config: dict[str, Any]
    policy: dict[str, Any]
    rules: Rules
    selector: selectors.BaseSelector
    ledger: Ledger
    dns: tuple[socket.socket, socket.socket, socket.socket]
    """UDP and TCP for the guest, and UDP on the host's loopback for the proxy."""
    proxy_sockets: dict[str, socket.socket]
    """By the variable names in the configuration of HAProxy."""
    control: socket.socket
    sets: AllowSets
    domain: DomainControl
    watch: TableWatch
    deadlines: Deadlines
    proxy: ProxyControl
    brokers: Brokers
    link: Link
    book: GrantBook
    revision: RevisionKeeper
    inbox: Inbox | None
    telemetry: Telemetry


def open_works(directory: Path) -> Works:
    """Read and open the files of the guard's folder, and bind its sockets. KtrdrError or OSError if one of them is not
    available."""
    config: dict[str, Any] = json.loads((directory / "guard.json").read_bytes())
    policy = json.loads((directory / "egress.json").read_bytes())
    rules = rules_from_json(policy, config["exceptions"])
    namespace, table = config["namespace"], config["table"]
    bind = _make_binder(config["gateway"], namespace)
    ledger, sets = Ledger(Path(config["ledger"]), config["instance_id"]), AllowSets(table, rules, namespace)
    domain, proxy, selector = DomainControl(config["domain"]), ProxyControl(directory), selectors.DefaultSelector()
    own = bind_early(socket.SOCK_DGRAM, config["loopback"], DNS_PORT)
    dns = bind(socket.SOCK_DGRAM, DNS_PORT), bind(socket.SOCK_STREAM, DNS_PORT), own
    brokers = Brokers(config["brokers"], proxy, ledger)
    book = GrantBook(directory / "grants.json")
    # Before everything that writes into the ledger, whose lines carry it.
    revision = RevisionKeeper(directory, book, ledger)
    return Works(
        directory=directory,
        config=config,
        policy=policy,
        rules=rules,
        selector=selector,
        ledger=ledger,
        dns=dns,
        proxy_sockets={
            "KTRDR_FD_HTTP": bind(socket.SOCK_STREAM, HTTP_PORT),
            "KTRDR_FD_TLS": bind(socket.SOCK_STREAM, TLS_PORT),
            "KTRDR_FD_OTHER": bind(socket.SOCK_STREAM, OTHER_PORT),
            "KTRDR_FD_STATS": listen_unix(directory / "stats.sock"),
            **brokers.listen(lambda port: bind(socket.SOCK_STREAM, port)),
        },
        control=listen_unix(directory / "control.sock"),
        sets=sets,
        domain=domain,
        watch=TableWatch(directory, table, namespace, directory.with_name("ruleset.expected"), sets, ledger),
        deadlines=Deadlines(directory / "deadlines.json", config["domain"], ledger),
        proxy=proxy,
        brokers=brokers,
        link=Link(config["tap"], namespace, ledger, brokers.forget),
        book=book,
        revision=revision,
        inbox=_open_inbox(config, bind) if config["escalations"] else None,
        telemetry=open_telemetry(config, ledger, selector, lambda: bind(socket.SOCK_STREAM, OTLP_PORT)),
    )


_Binder = Callable[[socket.SocketKind, int], socket.socket]


def _make_binder(gateway: str, namespace: str) -> _Binder:
    return lambda kind, port: bind_early(kind, gateway, port, namespace)


def _open_inbox(config: dict[str, Any], bind: _Binder) -> Inbox:
    from ktrdr_vm.escalation.store import EscalationStore

    return Inbox(
        bind(socket.SOCK_STREAM, INBOX_PORT), EscalationStore(Path(config["escalations"]), config["instance_id"])
    )
