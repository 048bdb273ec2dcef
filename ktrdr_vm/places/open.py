"""Opening a place: its connection, or the service of this host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.host import process
from ktrdr_vm.host.paths import Home
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.places.connection import Connection, SshChannel
from ktrdr_vm.places.engine import DetachedEngine, Engine
from ktrdr_vm.places.far_end import FarEnd
from ktrdr_vm.places.model import PLACES, Place
from ktrdr_vm.places.request import FILES, Request
from ktrdr_vm.places.secret_values import require_sources
from ktrdr_vm.places.service import SCHEMA, Service
from ktrdr_vm.places.slurm import SlurmEngine, make_spool
from ktrdr_vm.places.spool import Spool
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.policy.owner_policy import HINT as POLICY_HINT
from ktrdr_vm.policy.owner_policy import check_policy
from ktrdr_vm.profile.schema import check_shape
from ktrdr_vm.profile.strict_yaml import Document

_LIST_LIMIT = 120.0
_SETTINGS = ("program", "spool", "cache", "options", "together")


def open_place(place: Place, home: Home, *, on_lost: Callable[[str], object] = str) -> FarEnd:
    """The place, ready for operations. A connection is made with the first of them."""
    if not place.host:
        return FarEnd(make_service(home, make_settings(place)).call, place.name, here=place.kind == "local")
    greeting = {"ktrdr-vm": version("ktrdr-vm"), "schema": SCHEMA, "settings": make_settings(place)}
    connection = Connection(lambda: SshChannel(place), greeting, place.name, on_lost=on_lost)
    return FarEnd(connection.call, place.name, connection.close)


def make_settings(place: Place) -> dict[str, Any]:
    """What the far end needs to know of the place."""
    if place.kind != "slurm":
        return {"kind": "process"}
    return {
        "kind": "slurm",
        "program": place.program,
        "spool": place.spool,
        "cache": place.cache,
        "options": list(place.options),
        "together": place.together,
    }


def make_service(home: Home, settings: dict[str, Any]) -> Service:
    """The service of this host. UsageError for settings that no `places.yaml` can contain."""
    engine: Engine
    if settings.get("kind") == "slurm":
        data = {name: settings[name] for name in _SETTINGS if settings.get(name)}
        program = str(data.pop("program", "ktrdr-vm"))
        checked = {
            "places": {"place": {"kind": "slurm", **data, **({"program": program} if program != "ktrdr-vm" else {})}}
        }
        if problems := check_shape(Document("settings", checked), PLACES):
            raise DocumentError(problems, hint="correct places.yaml at the client")
        spool = make_spool(str(data["spool"]))
        cache, options = str(data.get("cache", "")), tuple(data.get("options", ()))
        engine = SlurmEngine(program, cache, options, together=int(data.get("together", 0)))
    else:
        spool, engine = Spool(home.spool), DetachedEngine(find_program())
    return Service(spool, engine, home, check_request, list_instances)


def find_program() -> tuple[str, ...]:
    """This program as words that start it."""
    script = Path(sys.executable).with_name("ktrdr-vm")
    return (str(script),) if script.exists() else (sys.executable, "-m", "ktrdr_vm")


def check_request(request: Request, folder: Path) -> None:
    """Refuse a request that the owner's policy forbids, or whose secrets this host does not have, before it waits for
    anything."""
    root = folder / FILES
    loaded = read_profile(root / request.profile, root)
    if problems := check_policy(loaded, read_policy(), str(root)):
        raise DocumentError(problems, hint=POLICY_HINT)
    if not request.warm:
        require_sources(request, loaded.profile.secrets)


def list_instances() -> list[dict[str, Any]]:
    """The instances of this host, listed by a process of its own, which enters the world of this user where there is no
    root."""
    done = process.run([*find_program(), "list", "--json"], timeout=_LIST_LIMIT, environment=dict(os.environ))
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else []
