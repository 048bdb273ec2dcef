"""A unit test starts no process and resolves no name: what needs that belongs into the lab."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile

# A busy machine is no failure, and a run leaves nothing behind.
settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_process_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: str) -> Any:
        def stop(*args: object, **_: object) -> NoReturn:
            pytest.fail(f"a unit test called {what}{args!r:.200}; it belongs into tests/lab", pytrace=True)

        return stop

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse("subprocess.Popen"))
    for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system"):
        monkeypatch.setattr(os, name, refuse(f"os.{name}"))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        monkeypatch.setattr(socket, name, refuse(f"socket.{name}"))


@pytest.fixture
def write_instance() -> Callable[..., Journal]:
    """Writes the journal and the keys of an instance, as `begin` leaves them. Keywords go to the journal, `document` to
    the profile."""

    def write(home: Home, name: str, document: dict[str, Any] | None = None, **fields: Any) -> Journal:
        paths = home.instance(name)
        mode = fields.setdefault("mode", "interactive")
        source = {"version": 1, "name": "n", "image": "i", "mode": mode, **(document or {})}
        facts = Facts("tcg", "/e", "m", str(home.root), ImageFacts("i", "d" * 64, "/i"))
        plan = Plan(build_profile(source), facts, parse_instance_id(name), source)
        for key in (paths.host_key, paths.login_key):
            key.parent.mkdir(parents=True, exist_ok=True)
            key.write_text("private")
            key.with_suffix(".pub").write_text("public")
        journal = Journal(
            paths.journal, name, **{"slot": 0, "plan": plan.to_json(), "plan_digest": plan.digest, **fields}
        )
        journal.save()
        return journal

    return write
