"""Which passed gate opens a brokered secret: the profile's own file, and not one of the same name; in its own run only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress import client
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Profile
from ktrdr_vm.report.model import GateOutcome, GateResult
from ktrdr_vm.run import provision
from ktrdr_vm.run import vm as stages
from ktrdr_vm.run.results import Results
from ktrdr_vm.run.run import Run


def make(path: str) -> Playbook:
    return Playbook(Path(path).stem, path, (), folder=str(Path(path).parent))


def make_profile(**more: Any) -> Profile:
    broker = {"host": "api.example.com", "header": "x: {{ secret }}", "base_url_env": "U"} | more
    return build_profile(
        {
            "version": 1, "name": "p", "image": "none", "mode": "interactive", "gates": ["startability", "unit"],
            "secrets": [{"name": "k", "source": {"env": "KTRDR_K"}, "broker": broker}],
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("/w/playbooks/startability.yaml", ["startability"]),
        ("/elsewhere/startability.yaml", []),
        ("/w/playbooks/unit.yaml", []),
    ],
)
def test_only_the_gate_that_is_waited_for_opens(monkeypatch: pytest.MonkeyPatch, source: str, told: list[str]) -> None:
    profile = make_profile(after="startability")
    asked: list[Any] = []
    monkeypatch.setattr(
        client, "ask_guard", lambda directory, op, **fields: asked.append((str(directory), op, fields["gate"]))
    )
    stage: Any = SimpleNamespace(
        plan=SimpleNamespace(profile=profile),
        gathered=SimpleNamespace(playbooks=tuple((gate, make(f"/w/playbooks/{gate}.yaml")) for gate in profile.gates)),
        loaded=SimpleNamespace(guard=client.GuardClient(Path("/guard"))),
    )
    stages.Stage.open_brokers(stage, make(source))
    assert asked == [("/guard", "gate_passed", gate) for gate in told]


@pytest.mark.parametrize(
    ("exists", "more", "told"),
    [
        (True, {"after": "startability"}, ["plan", "gates_began", "run_began r2"]),
        (False, {"after": "startability"}, ["plan", "run_began r2"]),
        (True, {}, ["plan", "run_began r2"]),
    ],
    ids=["an instance that stays", "a new one", "no gate to wait for"],
)
def test_what_an_earlier_run_has_passed_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, exists: bool, more: dict[str, str], told: list[str]
) -> None:
    asked: list[str] = []

    def answer(_directory: Path, op: str, **fields: object) -> dict[str, str]:
        asked.append(f"{op} {fields.get('run_id', '')}".strip())
        return {"revision": "r"}

    monkeypatch.setattr(client, "ask_guard", answer)
    loaded = SimpleNamespace(guard=client.GuardClient(Path("/guard")), create=lambda **_: None)
    stage: Any = SimpleNamespace(
        _plan=SimpleNamespace(profile=make_profile(**more), digest="d", collector=object()),
        _instance=SimpleNamespace(begin=lambda *_, **__: loaded),
        _context=SimpleNamespace(run_id="r2"),
        _gathered=SimpleNamespace(policy=SimpleNamespace(most_instances=1, mount_roots=())),
        _source="",
        _guard=None,
        _read_secret=None,
        _follow=lambda *_: None,
        _follow_revision=lambda _: None,
    )
    journal, before = (SimpleNamespace(), SimpleNamespace()) if exists else (None, None)
    recorder: Any = SimpleNamespace(on_resource=None)
    provision.Provisioner._create(stage, journal, before, None, recorder)  # type: ignore[arg-type]
    assert asked == told


@pytest.mark.parametrize(("outcome", "opened"), [("passed", ["startability"]), ("failed", [])])
def test_a_run_that_is_continued_counts_the_gate_that_passed_before(outcome: GateOutcome, opened: list[str]) -> None:
    result = GateResult("startability", outcome, "2026-01-01T00:00:00Z", 1.0)
    seen: list[str] = []
    stage = SimpleNamespace(
        resume=lambda _: None,
        instance=SimpleNamespace(paths=SimpleNamespace(guard=Path("/guard"))),
        open_brokers=lambda playbook: seen.append(playbook.name),
        plan=SimpleNamespace(profile=make_profile(after="startability")),
        harvest=SimpleNamespace(fetch_artifacts=lambda _: None),
    )
    run: Any = SimpleNamespace(
        _stages=[stage],
        _stop=SimpleNamespace(results=(result,)),
        _mask=SimpleNamespace(follow=lambda _: None),
        _results=Results(run_id="r1", started_at="2026-01-01T00:00:00Z"),
        _judge=lambda _: None,
    )
    recorder: Any = None
    Run._work(run, [make("/w/playbooks/startability.yaml"), make("/w/playbooks/unit.yaml")], recorder)
    assert seen == opened
