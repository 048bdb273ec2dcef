"""To make a guard opens and starts nothing; `start` starts the resolver first, and takes up what an earlier guard
left."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import guard as guard_module
from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.egress.guard import Guard
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.egress.rules import rules_from_json
from ktrdr_vm.egress.telemetry.supervisor import Telemetry
from ktrdr_vm.egress.works import Inbox, Works
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.plan.egress_policy import compile_policy

CONFIG: dict[str, Any] = {
    "instance_id": "one", "table": "ktrdr_one", "tap": "kt0", "domain": "ktrdr-one", "namespace": "ktrdr-one", "gateway": "192.0.2.1", "loopback": "127.0.0.9", "proxy_uid": "1",
    "resolver_uid": "2", "inbox_uid": "3", "exceptions": [], "escalations": "e", "owner": [0, 0], "telemetry": None, "brokers": [],
}  # fmt: skip


class Nothing:
    """Stands for what is open already. Whoever makes a guard asks nothing of it."""


def make_works(directory: Path, **other: Any) -> Works:
    policy = json.loads(json.dumps(compile_policy(()).to_json()))
    rules = rules_from_json(policy, [])
    fields: dict[str, Any] = dict.fromkeys(Works.__dataclass_fields__, Nothing())
    fields |= {
        "directory": directory, "config": CONFIG, "policy": policy, "rules": rules, "proxy_sockets": {}, "dns": (Nothing(), Nothing(), Nothing()),
        "sets": AllowSets("ktrdr_one", rules), "domain": DomainControl("ktrdr-one"), "proxy": ProxyControl(directory),
        "inbox": Inbox(Nothing(), EscalationStore(directory, "one")), "telemetry": Telemetry(),  # type: ignore[arg-type]
    }  # fmt: skip
    return Works(**{**fields, **other})


def test_to_make_a_guard_opens_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*what: object, **_: object) -> None:
        pytest.fail(f"it opened or started something: {what}")

    works, before = make_works(tmp_path), set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        patched.setattr(socket, "socketpair", refuse)
        patched.setattr(subprocess.Popen, "__init__", refuse)
        patched.setattr(selectors, "DefaultSelector", refuse)
        patched.setattr("builtins.open", refuse)
        patched.setattr(Path, "open", refuse)
        patched.setattr(os, "pipe2", refuse)
        made = Guard(works)
    assert set(os.listdir("/proc/self/fd")) == before and list(tmp_path.iterdir()) == []
    assert list(made.parts) == ["resolver", "proxy", "inbox"] and {part.pid for part in made.parts.values()} == {0}


def test_the_resolver_starts_first_and_the_earlier_grants_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    made = Guard(make_works(tmp_path, inbox=None))
    monkeypatch.setattr(guard_module, "find_upstreams", lambda: ["192.0.2.53"])
    monkeypatch.setattr(made.sets, "set_upstreams", lambda servers: done.append(f"upstreams {servers}"))
    monkeypatch.setattr(made, "_close_on_link", lambda: done.append("on-link networks"))
    monkeypatch.setattr(made.parts["resolver"], "poll", lambda: done.append("resolver"))
    monkeypatch.setattr(made.granting, "start", lambda *, afresh: done.append(f"grants, afresh: {afresh}"))
    made.start()
    assert done == ["resolver", "upstreams ['192.0.2.53']", "on-link networks", "grants, afresh: True"]
    monkeypatch.setattr(guard_module, "list_table", lambda *_: None)
    monkeypatch.setattr(made.sets, "adopt", lambda _: done.append("addresses"))
    made.start()
    assert done[-2:] == ["addresses", "grants, afresh: False"]
