"""A systemd that does not give the world its scope: the message is systemd's, and nothing weaker is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import cgroups, process, sub_ids
from ktrdr_vm.world import enter
from ktrdr_vm.world.layout import Layout


def test_the_message_is_that_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    def start(_module: str, _words: object, *, streams: process.Streams, **options: Any) -> mock.Mock:
        started.append(options)
        assert isinstance(streams.stderr, int)
        os.write(streams.stderr, b"Failed to start transient scope unit: Access denied\n")
        return mock.Mock()

    monkeypatch.setattr(cgroups, "make_launcher", lambda _: (["systemd-run"], {"XDG_RUNTIME_DIR": "/run/user/1"}))
    monkeypatch.setattr(sub_ids, "require_user_namespaces", lambda: None)
    monkeypatch.setattr(sub_ids, "find_map", lambda *_: None)
    monkeypatch.setattr(process, "require_program", Path)
    monkeypatch.setattr(process, "start_module", start)
    with pytest.raises(HostError, match="transient scope unit: Access denied") as refused:
        enter._start(Layout(tmp_path, tmp_path))
    assert "systemctl --user status" in refused.value.hint
    assert started == [{"launcher": ["systemd-run"], "environment": {"XDG_RUNTIME_DIR": "/run/user/1"}}]
