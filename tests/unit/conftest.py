"""A unit test starts no process and resolves no name: what needs that belongs into the lab."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import Any, NoReturn

import pytest
from hypothesis import settings

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
