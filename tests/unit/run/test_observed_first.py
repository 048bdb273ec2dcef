"""The first line of a report of an observe run says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run.warnings import find_first_lines


@pytest.mark.parametrize(("mode", "said"), [("observe", True), ("enforce", False)])
def test_an_observe_run_says_so_first(mode: str, said: bool) -> None:
    document = {"version": 1, "name": "n", "image": "i", "egress": {"mode": mode}}
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d" * 64, "/i"))
    plan = Plan(build_profile(document), facts, parse_instance_id("one"), document)
    loaded: Any = SimpleNamespace(source="p.yaml")
    lines = find_first_lines((), Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "x"), None, None, ()))
    assert [line.startswith("OBSERVE: ") for line in lines][:1] == ([True] if said else [])
