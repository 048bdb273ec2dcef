"""What `apply` does to an instance that exists: an interactive one follows its profile, or stays as it was; a sandbox is
made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.journal import Journal, read_journal
from ktrdr_vm.host.libvirt_binding import DomainState
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run import provision
from ktrdr_vm.run.listener import Options
from ktrdr_vm.run.provision import Provisioner
from tests.fakes.guest import FakeGuest
from tests.fakes.libvirt import FakeLibvirt, make_domain


class Applied(Exception):
    """The plan is accepted: from here on resources are created."""


class Following:
    """One `apply` of a profile on an instance that exists, up to the point at which resources would be created."""

    def __init__(
        self, home: Home, document: dict[str, Any], state: DomainState, *, digest: str = "d", restart: bool = False
    ) -> None:
        source = {"version": 1, "name": "n", "image": "i", **document}
        facts = Facts("tcg", "/e", "m", str(home.root), ImageFacts("i", digest * 64, "/i"))
        plan = Plan(build_profile(source), facts, parse_instance_id("one"), source)
        loaded: Any = SimpleNamespace(source="p.yaml")
        gathered = Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "test"), None, None, ())
        domain = make_domain("one", home.root, plan.profile.mode, state)
        self.instance = Instance(home, plan.identity, FakeLibvirt(domain))
        self.said: list[str] = []
        self.recorder: Any = SimpleNamespace(
            listener=SimpleNamespace(note=self.said.append),
            directory=SimpleNamespace(event=lambda event, **fields: self.said.append(f"{event} {fields['part']}")),
            on_resource=lambda *_: None,
        )
        context: Any = SimpleNamespace(run_id="r")
        sampler: Any = None
        options = Options(restart=restart)
        self.provisioner = Provisioner(gathered, home, self.instance, context, options, sampler, name="base")

    def apply(self) -> None:
        journal = self.instance.require_journal()
        self.provisioner._create(journal, plan_from_json(journal.plan), None, self.recorder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    def begin(_self: Instance, *_: object, journal: Journal | None, **__: object) -> None:
        raise Applied(journal)

    monkeypatch.setattr(Instance, "begin", begin)
    made = Home(tmp_path)
    made.create()
    return made


# A guest that stands still because the disk of the host is full has the memory that it was started with.
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
@pytest.mark.parametrize(
    "change",
    [{"resources": {"memory": "3GiB"}}, {"resources": {"vcpus": 3}}, {"mounts": [{"source": "./a", "target": "/a"}]}],
    ids=["memory", "vcpus", "mounts"],
)
def test_without_restart_nothing_of_a_vm_that_lives_is_changed(
    home: Home, write_instance: Callable[..., Journal], change: dict[str, Any], state: DomainState
) -> None:
    before = write_instance(home, "one")
    following = Following(home, {"mode": "interactive", **change}, state)
    with pytest.raises(UsageError, match="require a restart of the VM") as refused:
        following.apply()
    assert "--restart" in refused.value.hint
    assert following.said == [] and read_journal(following.instance.paths.journal) == before


def test_one_that_has_ended_starts_with_the_change(home: Home, write_instance: Callable[..., Journal]) -> None:
    write_instance(home, "one")
    following = Following(home, {"mode": "interactive", "resources": {"memory": "3GiB"}}, DomainState.SHUTOFF)
    with pytest.raises(Applied):
        following.apply()
    assert following.said[-1] == "change resources.memory"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("part", ["resources.disk", "image", "mode"])
def test_what_cannot_be_changed_is_refused_with_what_to_do(
    home: Home, write_instance: Callable[..., Journal], part: str, restart: bool
) -> None:
    before = write_instance(home, "one", mode="sandbox" if part == "mode" else "interactive")
    document: dict[str, Any] = {"mode": "interactive", **({"resources": {"disk": "50GiB"}} if "." in part else {})}
    digest = "e" if part == "image" else "d"
    following = Following(home, document, DomainState.RUNNING, digest=digest, restart=restart)
    with pytest.raises(UsageError, match=f"cannot be applied to an existing instance: {part}") as refused:
        following.apply()
    assert "ktrdr-vm snapshot one NAME" in refused.value.hint and "--from one@NAME" in refused.value.hint
    assert following.said == [] and read_journal(following.instance.paths.journal) == before


def test_a_sandbox_that_was_kept_is_destroyed_and_made_anew(
    home: Home, write_instance: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    destroyed: list[str] = []
    monkeypatch.setattr(Instance, "destroy", lambda self, **_: destroyed.append(self.identity.instance_id))
    write_instance(home, "one", mode="sandbox", kept=True)
    following = Following(home, {"mode": "sandbox"}, DomainState.RUNNING)
    with pytest.raises(Applied) as begun:
        following.apply()
    assert destroyed == ["one"] and begun.value.args == (None,)


@pytest.mark.parametrize(
    ("mode", "has", "copied"), [("interactive", True, False), ("interactive", False, True), ("sandbox", True, True)]
)
def test_the_workspace_of_an_interactive_instance_is_copied_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, mode: str, has: bool, copied: bool
) -> None:
    document = {"mode": mode, "workspace": {"source": ".", "target": "/workspace"}}
    following = Following(home, document, DomainState.RUNNING)
    following.recorder.phase = lambda *_, **__: contextlib.nullcontext()
    workspace: Any = following.provisioner._plan.profile.workspace
    done: list[object] = []
    monkeypatch.setattr(provision, "copy_in", lambda _, into, *__, **___: done.append(into))
    guest = FakeGuest(lambda ran: GuestResult(0 if has else 1, b"", b""))
    repository: Any = None
    following.provisioner._provide_workspace(repository, workspace, guest, following.recorder)
    assert done == ([workspace] if copied else [])
    assert any("exists and is not changed" in line for line in following.said) is not copied
