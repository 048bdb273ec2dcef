"""The fresh VM that verifies the commits of a workload has no credential of it, and an instance_id of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktrdr_vm.guest.commits import Returned, ReturnedRef
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.from_commits import make_fresh
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile

COMMIT = "c" * 40
BROKER = {"host": "api.example.com", "header": "x: {{ secret }}", "base_url_env": "API_URL"}
DOCUMENT: dict[str, Any] = {
    "version": 1, "name": "n", "image": "i", "mode": "interactive", "gates": ["unit"], "environment": {"KEPT": "1"},
    "workspace": {"source": ".", "include": [".env"]}, "workload": {"command": ["agent"]},
    "secrets": [
        {"name": "key", "source": {"env": "KTRDR_KEY"}, "broker": BROKER},
        {"name": "token", "source": {"env": "KTRDR_TOKEN"}},
    ],
}  # fmt: skip


def test_it_has_no_workload_no_secrets_and_no_brokers() -> None:
    facts = Facts("tcg", "/e", "m", "/w", ImageFacts("i", "d" * 64, "/i"))
    plan = Plan(build_profile(DOCUMENT), facts, parse_instance_id("one"), DOCUMENT)
    assert len(plan.routes) == 1 and len(plan.profile.secrets) == 2
    loaded: Any = None
    repository = Repository(Path("/w"), "main", "b" * 40, (0, 0), "app")
    gathered = Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "test"), repository, None, ())
    found = make_fresh(gathered, Returned((ReturnedRef("refs/ktrdr/one/main", COMMIT, ()),), "main"))
    fresh = found.plan
    assert (fresh.routes, fresh.profile.secrets, fresh.profile.workload) == ((), (), None)
    assert fresh.profile.mode == "sandbox" and fresh.profile.gates == ("unit",)
    assert dict(fresh.profile.environment) == {"KEPT": "1"} and "API_URL" not in fresh.gateway_variables("10.213.0.1")
    assert fresh.profile.workspace is not None and fresh.profile.workspace.include == ()
    assert fresh.identity.instance_id == "one--verify" and fresh.facts.base_commit == COMMIT
    assert found.repository is not None and found.repository.commit == COMMIT
