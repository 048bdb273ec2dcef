"""`bundle --publish` of a run that has nothing to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.bundle import Bundle


def test_a_run_without_a_workspace_is_an_error_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bundle(tmp_path / "bundle", tmp_path / "bundle.tar.zst", "t", "", "", "", "", ("commits",), False, False)
    published: list[Any] = []
    monkeypatch.setattr("ktrdr_vm.cli.options.find_run", lambda *_: tmp_path)
    monkeypatch.setattr("ktrdr_vm.evidence.bundle.make_bundle", lambda *_: made)
    monkeypatch.setattr("ktrdr_vm.evidence.bundle.publish", lambda *words: published.append(words))
    monkeypatch.setattr("ktrdr_vm.evidence.reader.find_workspace", lambda *_: None)
    done = CliRunner().invoke(cli, ["bundle", "one", "--publish"])
    assert isinstance(done.exception, UsageError) and "no commit to publish" in done.exception.message
    assert str(made.archive) in done.output and published == []
