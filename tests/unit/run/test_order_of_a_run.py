"""The steps of a run come in the order that the page of profiles states, and each VM ends when it says so."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.guest.commits import Returned, ReturnedRef
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run import provision, run
from ktrdr_vm.run.collect import Harvest
from ktrdr_vm.run.listener import Listener, Options
from ktrdr_vm.run.provision import Provisioner
from ktrdr_vm.run.run import Run
from ktrdr_vm.run.vm import Stage
from tests.fakes.libvirt import FakeLibvirt

DOCUMENT: dict[str, Any] = {"version": 1, "name": "n", "image": "i", "workspace": {}, "gates": ["one", "two"]}
WORK = {"workload": {"command": ["agent"]}}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, by name; nothing of it is done."""
    done: list[str] = []

    def note(name: str, value: Any = None) -> Any:
        def act(*_: object, **__: object) -> Any:
            done.append(name)
            return value

        return act

    def destroy(stage: Stage, _recorder: object) -> tuple[tuple[()], None]:
        done.append(f"destroy {stage.plan.identity.instance_id}")
        stage.destroyed = True
        return (), None

    def run_gates(_stage: Stage, gates: list[str], *_: object, **__: object) -> tuple[()]:
        done.extend(gates)
        return ()

    guest: Any = SimpleNamespace()
    loaded: Any = SimpleNamespace(connect=note("boot", guest), environment=dict, complete=note("mounts and secrets"))
    image: Any = SimpleNamespace(virtual_size=1)
    monkeypatch.setattr(provision, "ensure_image", note("image", image))
    monkeypatch.setattr(provision, "build_best", note("template", object()))
    monkeypatch.setattr("ktrdr_vm.guest.personalize.personalize", note("identity and Docker"))
    monkeypatch.setattr(provision, "copy_in", note("workspace"))
    monkeypatch.setattr(provision, "copy_returned", note("workspace", provision.Laid()))
    monkeypatch.setattr(Provisioner, "_create", note("resources", loaded))
    monkeypatch.setattr(provision, "fits", lambda _: True)
    for name in (
        "list_ruleset",
        "require_passage",
        "require_capacity",
        "start_guard",
        "find_fork_obstacle",
        "find_best",
    ):
        monkeypatch.setattr(provision, name, lambda *_: None)
    monkeypatch.setattr(Stage, "run_gates", run_gates)
    monkeypatch.setattr(Stage, "run_workload", note("workload"))
    monkeypatch.setattr(Stage, "destroy", destroy)
    monkeypatch.setattr(Harvest, "fetch_artifacts", note("artifacts"))
    monkeypatch.setattr(Harvest, "fetch_notes", lambda *_: None)
    monkeypatch.setattr(Harvest, "keep_evidence", note("evidence"))
    returned = Returned((ReturnedRef("refs/ktrdr/one/main", "c" * 40, ()),), "main")
    monkeypatch.setattr(Harvest, "pull", note("commits", returned))
    return done


def make_run(tmp_path: Path, options: Options, **more: Any) -> Run:
    document = DOCUMENT | more
    facts = Facts(
        "tcg", "/e", "m", str(tmp_path), ImageFacts("i", "d" * 64, "/i"),
        owner_uid=os.getuid(), owner_gid=os.getgid(), workspace=str(tmp_path),
    )  # fmt: skip
    plan = Plan(build_profile(document), facts, parse_instance_id("one"), document)
    loaded: Any = SimpleNamespace(source="p.yaml")
    repository = Repository(tmp_path, "main", "b" * 40, (0, 0), "app")
    gathered = Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "test"), repository, None, ())
    made = Run(gathered, Home(tmp_path), FakeLibvirt(), options, Listener())
    made._home.create()
    made._add_stage(gathered, "base").sampler = SimpleNamespace(start=lambda: None)  # type: ignore[assignment]
    return made


def work(made: Run) -> None:
    recorder: Any = SimpleNamespace(
        listener=SimpleNamespace(note=lambda _: None),
        on_resource=None,
        phase=lambda *_, **__: contextlib.nullcontext(),
        directory=SimpleNamespace(event=lambda *_, **__: None),
    )
    with made._locks:
        made._work(["one", "two"], recorder)  # type: ignore[list-item]
        for stage in made._stages:
            if not stage.destroyed:
                made._end(stage, recorder)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.GrowingMask, "follow", lambda *_: None)
    monkeypatch.setattr("ktrdr_vm.run.vm.Sampler", lambda *_, **__: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr("ktrdr_vm.guest.loose_files.open_stored", lambda _: contextlib.nullcontext(None))


def test_the_steps_come_in_the_order_of_the_page(tmp_path: Path, log: list[str]) -> None:
    work(make_run(tmp_path, Options()))
    assert log == [
        "image", "template", "resources", "boot", "identity and Docker", "mounts and secrets", "workspace", "one", "two",
        "artifacts", "evidence", "destroy one",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "more", "ends"),
    [(Options(), {}, True), (Options(keep="on-failure"), {}, False), (Options(), {"mode": "interactive"}, False)],
)
def test_the_vm_of_the_workload_ends_before_the_fresh_one_begins_unless_it_may_be_kept(
    tmp_path: Path, log: list[str], options: Options, more: dict[str, Any], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Provisioner, "_provide_workspace", lambda *_: log.append("workspace"))
    work(make_run(tmp_path, options, **WORK, **more))
    assert [one for one in log if one in ("workspace", "one", "two", "workload", "commits")] == [
        "workspace", "one", "workload", "commits", "workspace", "one", "two",
    ]  # fmt: skip
    second = [number for number, one in enumerate(log) if one == "image"][1]
    assert ("destroy one" in log[:second]) is ends and log[-1] == f"destroy {'one--verify'}"
