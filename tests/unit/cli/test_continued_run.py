"""`apply --continue`: the run goes on with what it began with, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run.checkpoint import Stop


def make_plan(name: str = "n", **facts: Any) -> Plan:
    document = {"version": 1, "name": name, "image": "i"}
    known = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d" * 64, "/i"), **facts)
    return Plan(build_profile(document), known, parse_instance_id("one"), document)


BEFORE = make_plan(base_commit="a" * 40, playbooks=(("gate", "1" * 64),))


class Began(Exception):
    """The run was begun."""


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        (BEFORE, True),
        (make_plan("other", base_commit="a" * 40, playbooks=(("gate", "1" * 64),)), False),
        (make_plan(base_commit="b" * 40, playbooks=(("gate", "1" * 64),)), False),
        (make_plan(base_commit="a" * 40, playbooks=(("gate", "2" * 64),)), False),
    ],
    ids=["the same", "profile", "commit", "playbook"],
)
def test_a_run_continues_with_what_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: Plan, begins: bool
) -> None:
    stop = Stop("p.yaml", str(tmp_path), (), "never", False, "r1", "2026-01-01T00:00:00Z", BEFORE.digest, ())
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr("ktrdr_vm.instance.instance.require_root", lambda: None)
    monkeypatch.setattr("ktrdr_vm.run.checkpoint.read_stop", lambda _: stop)
    monkeypatch.setattr("ktrdr_vm.inputs.profile_file.find_profile", lambda *words: words)
    monkeypatch.setattr("ktrdr_vm.inputs.resolve.gather", lambda *_, **__: SimpleNamespace(plan=now))

    def begin(_: object) -> None:
        raise Began

    monkeypatch.setattr("ktrdr_vm.cli.progress.TerminalListener", begin)
    done = CliRunner().invoke(cli, ["apply", "--continue", "one"], standalone_mode=False)
    assert isinstance(done.exception, Began if begins else UsageError), done.exception
    assert begins or "changed since the run stopped" in str(done.exception)
