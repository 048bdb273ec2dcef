"""A loaded instance: its journal is read once and its plan parsed once, and a resource's kind is compared in one
place."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.cli.main import main
from ktrdr_vm.egress import client
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.host.clock import boottime
from ktrdr_vm.host.journal import Journal, read_journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.libvirt_binding import DomainState
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance import inventory
from ktrdr_vm.instance import loaded as loaded_module
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import is_kept
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources import make_resources
from ktrdr_vm.instance.resources.base import Resource
from ktrdr_vm.instance.teardown import find_residue
from ktrdr_vm.plan.plan import Plan
from tests.fakes.libvirt import FakeLibvirt, make_domain

PACKAGE = Path(__file__).resolve().parents[3] / "ktrdr_vm"
SECRETS = {"secrets": [{"name": "token", "source": {"env": "KTRDR_TOKEN"}}]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> Home:
    """One suspended instance with a secret, on a host where nothing of it is there but its files."""
    made = Home(tmp_path)
    made.create()
    write_instance(made, "one", SECRETS, state="suspended", kept=True)
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr(Libvirt, "find", lambda *_: None)
    monkeypatch.setattr(Libvirt, "list_ours", lambda _: [])
    monkeypatch.setattr(loaded_module, "close_unguarded", lambda _: False)
    monkeypatch.setattr(inventory, "list_tables", lambda _: [])
    monkeypatch.setattr(inventory, "list_links", lambda *_: {})
    monkeypatch.setattr(client, "ask_guard", lambda *_, **__: {"parts": {}})
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often journals were read, plans parsed and documents rendered."""
    counts: Counter[str] = Counter()
    opened, parse, render = os.open, loaded_module.plan_from_json, Plan.render

    def open_counted(path: Any, flags: int, *more: Any, **named: Any) -> int:
        counts["journal"] += isinstance(path, Path) and path.name == "journal.json" and not flags & os.O_WRONLY
        return opened(path, flags, *more, **named)

    def parse_counted(content: dict[str, Any]) -> Plan:
        counts["plan"] += 1
        return parse(content)

    def render_counted(*arguments: Any) -> dict[str, str]:
        counts["documents"] += 1
        return render(*arguments)

    monkeypatch.setattr(os, "open", open_counted)
    monkeypatch.setattr(loaded_module, "plan_from_json", parse_counted)
    monkeypatch.setattr(Plan, "render", render_counted)
    return counts


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("status one", {"journal": 1, "plan": 1}), ("ssh one", {"journal": 1, "plan": 1}), ("ssh-config one", {"journal": 1, "plan": 1}),
        ("secrets list one", {"journal": 1, "plan": 1}), ("suspend one", {"journal": 1, "plan": 1}),
        ("resume one", {"journal": 1, "plan": 1}), ("escalations deny one e1 --reason x", {"journal": 1}), ("list", {"journal": 1}),
    ],
)  # fmt: skip
def test_a_command_reads_the_journal_once(
    home: Home, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, line: str, wanted: dict[str, int]
) -> None:
    monkeypatch.setattr("ktrdr_vm.instance.instance.os.geteuid", lambda: 0)
    monkeypatch.setenv("KTRDR_TOKEN", "value")
    monkeypatch.setattr("ktrdr_vm.cli.ssh._become", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["ktrdr-vm", *line.split()])
    monkeypatch.setattr("ktrdr_vm.cli.main.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        main()
    assert {name: counted[name] for name in ("journal", "plan")} == {"journal": 0, "plan": 0, **wanted}


def test_its_properties_do_no_io(home: Home, counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Instance(home, Identity("one"), FakeLibvirt()).load()
    counted.clear()

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a property opened a file")

    with monkeypatch.context() as patched:
        for name in ("open", "read_bytes", "read_text", "exists", "stat"):
            patched.setattr(Path, name, refuse)
        patched.setattr("builtins.open", refuse)
        for name in [name for name, value in vars(LoadedInstance).items() if isinstance(value, property)]:
            getattr(loaded, name)
        loaded.make_blueprint()
        loaded.environment()
    assert loaded.journal is loaded.journal and loaded.plan.profile.secrets[0].name == "token"
    assert counted == {}, "documents are rendered when one is needed"
    blueprint = loaded.make_blueprint()
    assert "domain.xml" in blueprint.documents and "ruleset.nft" in blueprint.documents and counted["documents"] == 1


def test_a_network_that_is_waited_for_is_rendered_once(
    home: Home, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Part:
        kind, name, isolates = "firewall", "x", True

        def __init__(self, blueprint: Any) -> None:
            self._blueprint, self.looks = blueprint, 0

        def exists(self) -> bool:
            self.looks += 1
            assert self._blueprint.documents
            return self.looks > 3

        def verify(self) -> list[str]:
            return []

    parts: list[Part] = []

    def make(_target: object, blueprint: object) -> tuple[Part, ...]:
        parts.append(Part(blueprint))
        return (parts[-1],)

    monkeypatch.setattr(loaded_module, "make_resources", make)
    monkeypatch.setattr(loaded_module.time, "sleep", lambda _: None)
    loaded = Instance(home, Identity("one"), FakeLibvirt(make_domain("one", home.root))).load()
    loaded.require_closed()
    assert counted["documents"] == counted["plan"] == counted["journal"] == 1
    [part] = parts
    assert part.looks > 3


def test_the_network_of_a_machine_that_has_ended_is_not_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks it next says that it has ended, and not that its tap has no carrier."""
    gone = SimpleNamespace(
        kind="tap", name="x", isolates=True, exists=lambda: True, verify=lambda: ["no machine is attached to it"]
    )
    monkeypatch.setattr(loaded_module, "make_resources", lambda *_: (gone,))
    monkeypatch.setattr(loaded_module.time, "sleep", lambda _: pytest.fail("it waits"))
    Instance(home, Identity("one"), FakeLibvirt()).load().require_closed()


def test_the_status_of_a_machine_without_a_guard_is_said_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]
) -> None:
    """Its link is down, so its secrets cannot be checked: no wait for SSH, no error instead of all the other rows."""
    secrets = [{"name": name, "source": {"env": "KTRDR_TOKEN"}} for name in ("token", "other")]
    write_instance(home, "one", {"secrets": secrets})
    libvirt = FakeLibvirt(make_domain("one", home.root, "interactive"))
    loaded = Instance(home, Identity("one"), libvirt).load()
    asked: list[str] = []

    monkeypatch.setattr("ktrdr_vm.guest.ssh._attempt", lambda *_, **__: pytest.fail("it connects"))
    monkeypatch.setattr("paramiko.Ed25519Key.from_private_key", lambda _: asked.append("connect"))
    monkeypatch.setattr(
        loaded_module,
        "make_resources",
        lambda target, blueprint: [
            one for one in make_resources(target, blueprint) if one.kind == "secret" and one.location == "guest"
        ],
    )
    rows = loaded.status()
    assert asked == ["connect"], "one attempt for all of them"
    assert [(row.name, row.exists) for row in rows] == [("token", True), ("other", True)]
    for row in rows:
        assert row.differences == ("it cannot be checked: no guard serves the instance, so the link of its VM is down",)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda paths, content: content.update(plan={}), "the plan in the journal"),
        (lambda paths, content: content["plan"]["facts"].update(more=1), "the plan in the journal"),
        (lambda paths, content: paths.login_key.with_suffix(".pub").unlink(), "a key of the instance"),
    ],
)
def test_what_cannot_be_loaded_says_why_and_can_be_destroyed(
    home: Home, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, dict[str, Any]], None], said: str
) -> None:
    instance = Instance(home, Identity("one"), FakeLibvirt())
    content = json.loads(instance.paths.journal.read_bytes())
    spoil(instance.paths, content)
    instance.paths.journal.write_text(json.dumps(content))
    with pytest.raises(ProvisionError, match=said) as caught:
        instance.load()
    assert caught.value.hint
    torn: list[object] = []
    monkeypatch.setattr("ktrdr_vm.instance.instance.tear_down", lambda *arguments: torn.append(arguments[1]))
    monkeypatch.setattr("ktrdr_vm.instance.instance.make_resources", lambda _target, blueprint: blueprint)
    instance.destroy()
    assert torn == [None]
    with pytest.raises(UsageError, match="there is no instance two"):
        Instance(home, Identity("two"), FakeLibvirt()).load()


def test_what_was_begun_again_has_the_new_plan_and_one_journal(home: Home, counted: Counter[str]) -> None:
    instance = Instance(home, Identity("one"), FakeLibvirt())
    before = instance.load()
    counted.clear()
    begun = instance.begin(before.plan, journal=before.journal, run_id="r2")
    assert (begun.journal, begun.plan) == (before.journal, before.plan) and begun.journal is before.journal
    # It was suspended, and nothing of that is left: it boots from its disk.
    assert (begun.journal.state, begun.journal.run_id) == ("awake", "r2")
    assert counted["journal"] == counted["plan"] == 0
    assert read_journal(instance.paths.journal) == begun.journal


def test_what_was_begun_again_has_its_whole_time_to_live(home: Home) -> None:
    instance = Instance(home, Identity("one"), FakeLibvirt())
    loaded = instance.load()
    loaded.journal.live_for(1)
    first = loaded.journal.expires_at
    plan = replace(loaded.plan, profile=replace(loaded.plan.profile, ttl=7200))
    begun = instance.begin(plan, journal=loaded.journal, run_id="r2").journal
    assert begun.expires_at > first and begun.expires_second - boottime() > 7000
    assert instance.begin(loaded.plan, journal=begun, run_id="r3").journal.expires_at == ""


@pytest.mark.parametrize("state", list(DomainState))
def test_what_is_alive_is_said_once(home: Home, state: DomainState) -> None:
    libvirt = FakeLibvirt(make_domain("one", home.root, "interactive", state))
    ended = state in ("shutoff", "crashed", "shutdown")
    assert state.is_alive is not ended
    assert Instance(home, Identity("one"), libvirt).target.is_running() is not ended


@pytest.mark.parametrize(
    ("journal", "mode", "wanted"),
    [
        ({"mode": "sandbox"}, "", False), ({"mode": "sandbox", "kept": True}, "", True), ({"mode": "interactive"}, "", True),
        (None, "interactive", True), (None, "sandbox", False), (None, "", False),
    ],
)  # fmt: skip
def test_what_is_kept_is_said_once(tmp_path: Path, journal: dict[str, Any] | None, mode: str, wanted: bool) -> None:
    home = Home(tmp_path)
    home.instance("one").directory.mkdir(parents=True)
    written = Journal(home.instance("one").journal, "one", **journal) if journal is not None else None
    if written is not None:
        written.save()
    libvirt = FakeLibvirt(*([make_domain("one", home.root, mode)] if mode else []))
    assert is_kept(written, libvirt.find("ktrdr-one")) == Instance(home, Identity("one"), libvirt).is_kept() == wanted


def test_every_kind_says_where_it_lives_and_what_outlives_a_suspend(home: Home) -> None:
    loaded = Instance(home, Identity("one"), FakeLibvirt()).load()
    loaded.paths.saved.write_bytes(b"")
    resources = make_resources(loaded.target, loaded.make_blueprint())
    shown = {one.kind: (one.location, one.needs_guest, one.survives_suspend, one.isolates) for one in resources}
    assert shown == {
        "overlay": ("host", False, True, False),
        "seed": ("host", False, True, False),
        "saved": ("host", False, True, False),
        "namespace": ("host", False, False, True),
        "firewall": ("host", False, False, True),
        "guard": ("host", False, False, True),
        "tap": ("host", False, False, True),
        "domain": ("host", False, False, False),
        "secret": ("guest", True, False, False),
    }
    assert isinstance(loaded.resource("overlay"), Resource) and loaded.resource("overlay").kind == "overlay"
    with pytest.raises(LookupError):
        loaded.resource("bridge")
    assert find_residue([one for one in resources if one.kind == "secret"]) == []


def _compares_kind(node: ast.AST) -> bool:
    """A comparison or a match with the `kind` of something that is no packet, whose kinds are other ones."""
    sides = (
        [node.left, *node.comparators]
        if isinstance(node, ast.Compare)
        else [node.subject]
        if isinstance(node, ast.Match)
        else []
    )
    owners = [side.value for side in sides if isinstance(side, ast.Attribute) and side.attr == "kind"]
    return any("packet" not in ast.unparse(owner) for owner in owners)


def test_the_kind_of_a_resource_is_compared_among_the_resources_only() -> None:
    found = []
    for room in ("instance", "approvals", "monitoring", "templates", "run", "cli", "api.py"):
        place = PACKAGE / room
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            if path.parent.name != "resources":
                nodes = [node for node in ast.walk(ast.parse(path.read_text())) if _compares_kind(node)]
                found += [f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}" for node in nodes]
    assert found == []
    assert [
        node
        for node in ast.walk(ast.parse((PACKAGE / "instance/resources/__init__.py").read_text()))
        if _compares_kind(node)
    ]
