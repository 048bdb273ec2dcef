"""`gc --owner` of an epilog: what cannot be removed is named, and the exit code drains the node."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.instance import garbage
from ktrdr_vm.instance import instance as instance_module


@pytest.mark.parametrize(("action", "code"), [("removed", 0), ("failed", 5)])
def test_what_cannot_be_removed_is_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, code: int
) -> None:
    asked: list[str] = []

    def collect(_home: object, _libvirt: object, job: str, *, dry_run: bool) -> list[dict[str, str]]:
        asked.append(job)
        return [{"action": action, "instance_id": "one", "reason": f"dry_run={dry_run}"}]

    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr(garbage, "collect_job", collect)
    monkeypatch.setattr(instance_module, "require_root", lambda: None)
    done = CliRunner().invoke(cli, ["gc", "--owner", "slurm:7"], standalone_mode=False)
    assert (done.return_value or 0, asked) == (code, ["slurm:7"]), done.exception
    assert f"{action}" in done.stdout and "one" in done.stdout and "dry_run=False" in done.stdout
