"""A profile with telemetry needs a collector of the owner: each command that reads it says so at its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.policy import load

PROFILE = "version: 1\nname: p\nimage: debian-13-docker\ntelemetry: {otlp: true}\n"


@pytest.mark.parametrize("command", ["validate", "plan", "apply"])
def test_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(load, "POLICY_PATH", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("ktrdr_vm.instance.instance.require_root", lambda: None)
    (tmp_path / "p.yaml").write_text(PROFILE)
    done = CliRunner().invoke(
        cli, [command, str(tmp_path / "p.yaml"), "--workspace", str(tmp_path)], standalone_mode=False
    )
    said = done.output
    if command != "validate":
        assert isinstance(done.exception, DocumentError), done.output
        said = str(done.exception)
    else:
        assert done.return_value == 2
    assert "telemetry.otlp: the owner's policy names no collector" in said and "p.yaml:4" in said
