"""Whose domain, whose process, whose disk: what is not this instance's own is never ended and never replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import running
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.resources.domain import Domain, find_qemu
from ktrdr_vm.instance.resources.overlay import Overlay
from tests.fakes.libvirt import FakeLibvirt, make_domain


def make_target(tmp_path: Path, libvirt: Libvirt) -> Target:
    return Target(parse_instance_id("one"), Home(tmp_path).instance("one"), libvirt)


def test_a_domain_of_another_home_is_never_ended(tmp_path: Path) -> None:
    libvirt = FakeLibvirt(make_domain("one", "/somewhere/else", "interactive"))
    with pytest.raises(ProvisionError, match="another state directory"):
        Domain(make_target(tmp_path, libvirt)).remove()
    assert libvirt.stopped == []


def test_a_qemu_of_another_home_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = tmp_path / "4711"
    entry.mkdir()
    words = [
        "/usr/bin/qemu-system-x86_64",
        "-name",
        "guest=ktrdr-one,debug-threads=on",
        '{"filename":"/else/instances/one/overlay.qcow2"}',
    ]
    (entry / "cmdline").write_bytes("\0".join(words).encode())
    monkeypatch.setattr(running, "Path", lambda *_: SimpleNamespace(iterdir=lambda: [entry]))
    assert find_qemu("ktrdr-one", Path("/else/instances/one")) == [4711]
    assert find_qemu("ktrdr-one", Path("/ours/instances/one")) == []


def test_a_persons_disk_is_not_made_empty_because_the_image_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target(tmp_path, FakeLibvirt())
    target.paths.overlay.parent.mkdir(parents=True)
    target.paths.overlay.write_bytes(b"a week of work")
    blueprint: Any = SimpleNamespace(
        template=None,
        plan=SimpleNamespace(
            profile=SimpleNamespace(mode="interactive", resources=SimpleNamespace(disk=1)),
            facts=SimpleNamespace(image=SimpleNamespace(disk="/new", disk_format="raw", boot="disk")),
        ),
    )
    overlay = Overlay(target, blueprint)
    monkeypatch.setattr(Overlay, "verify", lambda _self: ["backed by /old, not /new"])
    with pytest.raises(ProvisionError, match="not the one that the profile asks for"):
        overlay.create()
    assert target.paths.overlay.read_bytes() == b"a week of work"


def test_a_disk_is_an_overlay_of_the_size_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qcow2 file without preallocation: it takes what the guest writes."""
    target = make_target(tmp_path, FakeLibvirt())
    target.paths.overlay.parent.mkdir(parents=True)
    blueprint: Any = SimpleNamespace(
        template=None,
        disk="",
        plan=SimpleNamespace(
            profile=SimpleNamespace(mode="sandbox", resources=SimpleNamespace(disk=20480)),
            facts=SimpleNamespace(image=SimpleNamespace(disk="/image", disk_format="raw", boot="disk")),
        ),
    )
    ran: list[list[str]] = []

    def run(words: list[Any], **_: object) -> None:
        ran.append([str(word) for word in words])
        Path(words[-2]).touch()

    monkeypatch.setattr("ktrdr_vm.instance.resources.overlay.process.run", run)
    Overlay(target, blueprint).create()
    partial = str(target.paths.overlay.with_suffix(".partial"))
    assert ran == [["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/image", partial, "20480M"]]
    assert target.paths.overlay.stat().st_mode & 0o777 == 0o600


def test_what_is_somebody_elses_is_neither_residue_nor_to_be_removed_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libvirt = FakeLibvirt(make_domain("one", "/somewhere/else", "interactive"))
    target = make_target(tmp_path, libvirt)
    monkeypatch.setattr(Domain, "_processes", lambda _self: [])
    monkeypatch.setattr("ktrdr_vm.instance.instance.make_resources", lambda *_: (Domain(target),))
    verbs: list[str] = []
    instance = Instance(Home(tmp_path), parse_instance_id("one"), libvirt)  # type: ignore[arg-type]
    instance.destroy(notify=lambda _kind, _name, verb, _seconds: verbs.append(verb))
    assert (verbs, libvirt.stopped) == (["absent"], [])
