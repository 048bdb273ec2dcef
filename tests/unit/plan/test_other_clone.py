"""An instance_id that another clone's instance has is refused, and told whose it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.changes import require_same_workspace
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import ImageRef, Profile, Workspace


def plan(workspace: str, *, copied: bool = True) -> Plan:
    facts = Facts("tcg", "/bin/qemu", "q35", "/home", ImageFacts("image", "0" * 64, "/image"))
    profile = Profile(name="p", image=ImageRef(recipe="image"), workspace=Workspace(source=".") if copied else None)
    return Plan(profile, replace(facts, workspace=workspace), Identity("app--main"))


@pytest.mark.parametrize(
    ("before", "after"), [("/a/app", "/a/app"), ("/a/app", "/a/app/services/api"), ("/a/app/services", "/a/app")]
)
def test_the_same_clone_may_apply_again(before: str, after: str) -> None:
    require_same_workspace(plan(before), plan(after))


@pytest.mark.parametrize(("before", "after"), [("/a/app", "/b/app"), ("/a/app", "/a/app2"), ("/a/app2", "/a/app")])
def test_another_clone_is_refused_and_told_whose_it_is(before: str, after: str) -> None:
    with pytest.raises(UsageError, match=f"belongs to the workspace {before}") as caught:
        require_same_workspace(plan(before), plan(after))
    assert "--instance-id" in caught.value.hint and caught.value.where == after


def test_without_a_workspace_in_it_an_instance_is_of_its_name_alone() -> None:
    require_same_workspace(plan("/a", copied=False), plan("/b", copied=False))
