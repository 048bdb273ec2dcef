"""Which passed gate opens a brokered secret: the profile's own file, and not one of the same name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress import client
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run import vm as stages


def make(path: str) -> Playbook:
    return Playbook(Path(path).stem, path, (), folder=str(Path(path).parent))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("/w/playbooks/startability.yaml", ["startability"]),
        ("/elsewhere/startability.yaml", []),
        ("/w/playbooks/unit.yaml", []),
    ],
)
def test_only_the_gate_that_is_waited_for_opens(monkeypatch: pytest.MonkeyPatch, source: str, told: list[str]) -> None:
    broker = {"host": "api.example.com", "header": "x: {{ secret }}", "base_url_env": "U", "after": "startability"}
    profile = build_profile(
        {
            "version": 1, "name": "p", "image": "none", "gates": ["startability", "unit"],
            "secrets": [{"name": "k", "source": {"env": "KTRDR_K"}, "broker": broker}],
        }
    )  # fmt: skip
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
