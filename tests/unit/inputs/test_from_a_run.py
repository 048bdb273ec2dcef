"""The profile of an instance from a run: a person works in it, so there are no gates, and no secret that waits for
one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktrdr_vm.inputs.from_run import make_document
from ktrdr_vm.profile.load import load_profile

BROKER = {"host": "api.example.com", "header": "x: {{ secret }}", "base_url_env": "API_URL"}
SOURCE: dict[str, Any] = {
    "version": 1, "name": "n", "image": "i", "mode": "sandbox", "gates": ["unit"], "workload": {"command": ["agent"]},
    "workspace": {"source": ".", "include": [".env"], "uncommitted": "include"}, "ttl": "1h",
    "secrets": [
        {"name": "key", "source": {"env": "KTRDR_KEY"}, "broker": BROKER},
        {"name": "push", "source": {"env": "KTRDR_PUSH"}, "broker": BROKER | {"after": "unit", "base_url_env": "PUSH_URL"}},
        {"name": "token", "source": {"env": "KTRDR_TOKEN"}},
    ],
}  # fmt: skip


def load(document: dict[str, Any]) -> Any:
    return load_profile(json.dumps(document), "plan.json", lambda *_: pytest.fail("it extends nothing")).profile


def test_what_waits_for_a_gate_is_left_out_and_the_rest_is_a_profile() -> None:
    assert load(SOURCE).mode == "sandbox"
    profile = load(make_document(SOURCE))
    assert (profile.mode, profile.gates, profile.workload, profile.ttl) == ("interactive", (), None, 0)
    assert [secret.name for secret in profile.secrets] == ["key", "token"]
    assert profile.workspace.include == () and profile.workspace.uncommitted == "ignore"


@pytest.mark.parametrize("secrets", [None, [], SOURCE["secrets"][1:2]])
def test_there_may_be_none(secrets: Any) -> None:
    source = {key: value for key, value in SOURCE.items() if key != "secrets"}
    made = make_document(source if secrets is None else source | {"secrets": secrets})
    assert load(made).secrets == () and SOURCE["workspace"]["include"] == [".env"]
