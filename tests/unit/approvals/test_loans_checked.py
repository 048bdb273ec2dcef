"""What no approval can lend: what the machine is not ready for, what the owner's policy does not allow, what is lent
already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.approvals import loans
from ktrdr_vm.approvals.loans import check_loan
from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Facts, HotplugReserve, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.model import ImageRef, Mount, Profile, Size, Workspace

FACTS = Facts(
    "tcg",
    "/bin/qemu",
    "q35",
    "/home",
    ImageFacts("image", "0" * 64, "/image"),
    workspace="/work",
    lending=HotplugReserve(True, 4, 4096),
)
PROFILE = Profile(
    name="p",
    image=ImageRef(recipe="image"),
    resources=Size(2, 2048, 10240),
    workspace=Workspace(),
    mounts=(Mount("./data", "/data"),),
)
POLICY = OwnerPolicy(mount_roots=("/srv/sets",))
FOLDER = {"source": "./more", "target": "/more", "readonly": True}


def check(kind: str, request: dict[str, Any], *standing: dict[str, Any], facts: Facts = FACTS) -> None:
    plan = Plan(PROFILE, facts, Identity("one"))
    instance = SimpleNamespace(
        plan=plan, identity=plan.identity, instance_id="one", home=SimpleNamespace(root=Path("/"))
    )
    check_loan(instance, kind, request, POLICY, standing)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def capacity(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the host was asked for, in MiB."""
    asked: list[int] = []
    monkeypatch.setattr(loans, "require_capacity", lambda _, memory: asked.append(memory))
    return asked


def test_what_may_be_lent_is(capacity: list[int]) -> None:
    check("mount", FOLDER)
    check("mount", FOLDER | {"source": "/srv/sets/one"}, FOLDER | {"target": "/other"})
    check("resources", {"vcpus": 4})
    check("resources", {"memory": 4096})
    assert capacity == [0, 2048], "the host has it, too"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "/etc"}, "neither in the workspace nor in a root"), ({"source": "./.ssh"}, "a personal folder or file"),
        ({"source": "./.git"}, r"\.git is never mounted"), ({"readonly": False}, "read-only"),
        ({"target": "/data/in"}, "overlaps with /data"), ({"target": "/workspace"}, "overlaps with /workspace"),
        ({"target": "/lent"}, "overlaps with /lent/here"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_lent(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check("mount", FOLDER | change, FOLDER | {"target": "/lent/here"})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"vcpus": 5}, "5 vCPUs"), ({"memory": 4097}, "4097 MiB"), ({"vcpus": 2}, "already"), ({"vcpus": 4, "memory": 1024}, "already"),
    ],
)  # fmt: skip
def test_a_size_that_is_not_lent(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check("resources", request_)


def test_one_loan_of_a_size_at_a_time() -> None:
    with pytest.raises(UsageError, match="hot-plugged already"):
        check("resources", {"vcpus": 4}, {"memory": 4096})


@pytest.mark.parametrize(("kind", "request_"), [("mount", FOLDER), ("resources", {"vcpus": 3})])
def test_a_machine_that_was_not_made_ready(kind: str, request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not prepared"):
        check(kind, request_, facts=replace(FACTS, lending=HotplugReserve()))


def test_a_host_without_the_memory_lends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, memory: int) -> None:
        raise HostError(f"{memory} MiB are not there", hint="")

    monkeypatch.setattr(loans, "require_capacity", refuse)
    with pytest.raises(HostError, match="1024 MiB"):
        check("resources", {"memory": 3072})
