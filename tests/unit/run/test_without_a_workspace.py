"""A workload without a workspace: no commits, so nothing is judged in a fresh VM, and no folder to begin in."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.run import vm
from ktrdr_vm.run.verification import choose_mode

DOCUMENT: dict[str, Any] = {"version": 1, "name": "p", "image": "i", "workload": {"command": ["make"]}}


@pytest.mark.parametrize(
    ("more", "mode"),
    [({}, "same"), ({"verify": "fresh"}, "same"), ({"workspace": {}}, "fresh"), ({"workspace": {}, "verify": "same"}, "same")],
)  # fmt: skip
def test_only_commits_are_judged_in_a_fresh_vm(more: dict[str, Any], mode: str) -> None:
    assert choose_mode(build_profile(DOCUMENT | more)) == mode


@pytest.mark.parametrize(("more", "folder"), [({}, None), ({"workspace": {"target": "/srv/w"}}, "/srv/w")])
def test_a_workload_begins_in_the_workspace(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], folder: str | None
) -> None:
    asked: list[Any] = []
    ended = SimpleNamespace(outcome="passed")

    def run_workload(_connect: object, workload: Workload, **options: Any) -> Any:
        asked.append((workload, options))
        return ended

    monkeypatch.setattr("ktrdr_vm.run.workload.run_workload", run_workload)
    stage: Any = SimpleNamespace(
        plan=SimpleNamespace(profile=build_profile(DOCUMENT | more)),
        gathered=SimpleNamespace(policy=None),
        connect=None,
        _environment={"A": "1"},
        _context=SimpleNamespace(mask=str),
        _phase=lambda *_: contextlib.nullcontext(),
    )
    recorder: Any = SimpleNamespace(listener=SimpleNamespace(output=None))
    assert vm.Stage.run_workload(stage, recorder) is ended  # type: ignore[comparison-overlap]
    [(workload, options)] = asked
    assert workload.command == ("make",)
    assert (options["chdir"], options["environment"]) == (folder, {"A": "1"})
