"""What a template is found by: it is shared only by what would have made the same one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.run import provision
from ktrdr_vm.run.listener import Options
from ktrdr_vm.templates import key as module
from ktrdr_vm.templates.key import Project, describe_template

FACTS = Facts("kvm", "/bin/qemu", "q35", "/home", ImageFacts("image", "0" * 64, "/image"), owner_uid=1000)
IMAGE = SimpleNamespace(digest="0" * 64, content_digest="1" * 64)
OF_A_PROFILE: dict[str, Any] = {
    "workspace": {"source": "."},
    "egress": {"allow": [{"host": "a.example"}]},
    "secrets": [{"name": "key", "source": {"env": "KTRDR_KEY"}}],
    "environment": {"NAME": "value-of-the-profile"},
    "workload": {"command": ["agent"]},
    "vars": {"a": 1},
    "gates": ["unit"],
}


READ_VERSION = module.read_qemu_version


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_qemu_version", lambda *_: "QEMU 1")


def make_plan(facts: Facts = FACTS, name: str = "one", **part: Any) -> Plan:
    source = {"version": 1, "name": "p", "image": "i", **part}
    return Plan(build_profile(source), facts, Identity(name), source)


def describe(plan: Plan, home: str = "/home", **more: Any) -> tuple[str, str]:
    facts, ingredients = describe_template(Home(Path(home)), plan, more.pop("image", IMAGE), more.pop("project", None))
    return facts.key, str(ingredients)


def test_nothing_that_only_a_profile_has_is_in_it() -> None:
    plain, full = describe(make_plan()), describe(make_plan(name="two", **OF_A_PROFILE))
    assert plain == full and "value-of-the-profile" not in full[1] and "a.example" not in full[1]


def test_each_of_these_has_one_of_its_own() -> None:
    other: Any = SimpleNamespace(digest="2" * 64, content_digest="1" * 64)
    rebuilt: Any = SimpleNamespace(digest="0" * 64, content_digest="3" * 64)
    keys = [
        describe(make_plan())[0],
        describe(make_plan(replace(FACTS, owner_uid=1001)))[0],
        describe(make_plan(), image=other)[0],
        describe(make_plan(), image=rebuilt)[0],
        describe(make_plan(resources={"vcpus": 3}))[0],
        describe(make_plan(), home="/another")[0],
        *(describe(make_plan(), project=Project("p", digest, lambda _: None))[0] for digest in ("x", "y")),
    ]
    assert len(set(keys)) == len(keys)


def test_a_cold_start_looks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = object()
    monkeypatch.setattr(provision, "fits", lambda _: True)
    monkeypatch.setattr(provision, "find_fork_obstacle", lambda _: "")
    monkeypatch.setattr(provision, "find_best", lambda *_: found)
    for cold in (False, True):
        stage: Any = SimpleNamespace(
            _options=Options(cold=cold), _plan=None, _home=None, _gathered=None, _instance=SimpleNamespace(libvirt=None)
        )
        recorder: Any = SimpleNamespace(listener=SimpleNamespace(note=None))
        chosen = provision.Provisioner._find_template(stage, IMAGE, recorder)  # type: ignore[arg-type]
        assert chosen is (None if cold else found)


def test_qemu_is_asked_again_when_its_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, emulator, asked = Home(tmp_path / "state"), tmp_path / "bin" / "qemu", []
    home.root.mkdir()
    emulator.parent.mkdir()

    def answer(argv: list[str], **_: object) -> Any:
        asked.append(argv)
        return SimpleNamespace(text=f"QEMU emulator version {len(asked)}\nCopyright\n")

    def install(text: str) -> None:
        emulator.write_text(text)
        for path in (emulator, emulator.parent):
            os.utime(path, (0, 0))

    monkeypatch.setattr(module.process, "run", answer)
    # An answer is kept only if nothing that it was made from is new.
    monkeypatch.setattr(module.time, "time_ns", lambda: 1 << 62)
    install("7.2")
    assert READ_VERSION(home, str(emulator)) == READ_VERSION(home, str(emulator)) == "QEMU emulator version 1"
    install("8.2.0")
    assert READ_VERSION(home, str(emulator)) == "QEMU emulator version 2"
    assert asked == [[str(emulator), "--version"]] * 2
