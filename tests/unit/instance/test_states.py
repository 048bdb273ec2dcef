"""What a journal says of an instance that sleeps, and what its domain begins from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.host.journal import SCHEMA_VERSION, Journal, read_journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import Found
from ktrdr_vm.instance.snapshot import find_snapshot, list_snapshots, remove_snapshot
from ktrdr_vm.plan.domain_memory import drop_incoming
from ktrdr_vm.plan.domain_xml import render_domain, render_template_domain
from ktrdr_vm.plan.facts import PLACEHOLDER, Facts, ImageFacts, TemplateFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import ImageRef, Profile, Size

ONE = parse_instance_id("one")
FACTS = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("i", "0" * 64, "/image"))
PROFILE = Profile("p", ImageRef(recipe="i"))
TEMPLATE = TemplateFacts("k", "/template")


def render(template: TemplateFacts | None) -> ElementTree.Element:
    return ElementTree.fromstring(render_domain(PROFILE, FACTS, ONE, PLACEHOLDER, "/instance", template))


def list_disks(root: ElementTree.Element) -> list[str]:
    disk = root.find("./devices/disk")
    assert disk is not None
    return [source.get("file", "") for source in disk.iter("source")]


class Gone:
    """A libvirt that has no domain."""

    def find(self, _name: str) -> None:
        return None


def test_a_journal_of_the_first_version_is_of_an_instance_that_is_awake(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text(json.dumps({"schema_version": 1, "instance_id": "one", "mode": "interactive"}))
    journal = read_journal(path)
    assert journal is not None and (journal.state, journal.source) == ("awake", "")
    journal.enter("suspended")
    # An earlier program must not take it for one that it knows.
    assert json.loads(path.read_bytes())["schema_version"] == SCHEMA_VERSION
    path.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "instance_id": "one"}))
    with pytest.raises(HostError, match=f"version {SCHEMA_VERSION + 1}"):
        read_journal(path)


def test_one_that_sleeps_is_not_entered(tmp_path: Path) -> None:
    home = Home(tmp_path)
    instance = Instance(home, ONE, Gone())  # type: ignore[arg-type]
    instance.paths.directory.mkdir(parents=True)
    journal = Journal(instance.paths.journal, "one", mode="interactive", state="suspended")
    journal.save()
    instance.paths.saved.write_bytes(b"state")
    with pytest.raises(UsageError, match="suspended") as caught:
        instance.refuse_suspended()
    assert "resume one" in caught.value.hint
    # Interrupted while it was suspended, and its machine is gone: it is not entered either.
    journal.enter("suspending")
    with pytest.raises(UsageError):
        instance.refuse_suspended()
    # Without a state there is nothing to resume it from: it boots from its disk.
    instance.paths.saved.unlink()
    instance.refuse_suspended()


@pytest.mark.parametrize(
    ("rest", "note"),
    [("suspended", ""), ("suspending", "interrupted"), ("resuming", "interrupted"), ("", "incomplete")],
)
def test_what_a_list_says_of_it(rest: str, note: str) -> None:
    assert Found("one", rest=rest, seen={"journal"}).note.startswith(note)


def test_what_has_lived_begins_from_its_disk_and_not_from_older_memory() -> None:
    """The memory of the template belongs to the template's disk; on a disk that has changed since it would destroy
    it."""
    fork, again = render(TEMPLATE), render(replace(TEMPLATE, thaw=False))
    assert "-incoming" in ElementTree.tostring(fork, "unicode")
    assert "-incoming" not in ElementTree.tostring(again, "unicode")
    # The same hardware: a saved state cannot be loaded into other.
    assert ["".join(one.itertext()) for one in fork.find("./devices") or ()] == [
        "".join(one.itertext()) for one in again.find("./devices") or ()
    ]
    assert (
        list_disks(fork) == list_disks(again) == ["/instance/overlay.qcow2", "/template/disk.qcow2", "/image/disk.raw"]
    )


def test_a_restored_domain_waits_for_no_template() -> None:
    root = render(TEMPLATE)
    drop_incoming(root)
    text = ElementTree.tostring(root, "unicode")
    assert "-incoming" not in text and "defer" not in text and "mem-path=/template/memory" in text


def test_a_project_stands_between_the_template_and_the_image() -> None:
    project = replace(TEMPLATE, has_project=True)
    assert list_disks(render(project))[1:] == ["/template/disk.qcow2", "/template/project.qcow2", "/image/disk.raw"]
    built = ElementTree.fromstring(render_template_domain(Size(), FACTS, ONE, PLACEHOLDER, project))
    assert list_disks(built) == ["/template/disk.qcow2", "/template/project.qcow2", "/image/disk.raw"]
    assert list_disks(ElementTree.fromstring(render_template_domain(Size(), FACTS, ONE, PLACEHOLDER, TEMPLATE))) == [
        "/template/disk.qcow2",
        "/image/disk.raw",
    ]


def test_half_a_snapshot_is_none_and_a_name_is_no_path(tmp_path: Path) -> None:
    home = Home(tmp_path)
    place = home.instance("one").snapshots
    for name in (".new-a", "b"):
        (place / name).mkdir(parents=True)
    (place / ".new-a" / "manifest.json").write_text("{}")
    (place / "b" / "manifest.json").write_text('{"name": "b"}')
    assert list_snapshots(home, "one") == []
    for name in ("..", "../..", ".new-a", "b/../b", ""):
        assert not remove_snapshot(home, "one", name)
    assert remove_snapshot(home, "one", "b") and not (place / "b").exists()


def test_a_snapshot_fits_its_image_and_its_disk_only(tmp_path: Path) -> None:
    home, profile = Home(tmp_path), replace(PROFILE, resources=Size(disk=2048))
    manifest = {
        "instance_id": "one",
        "name": "a",
        "image": "0" * 64,
        "disk": 2048,
        "template": "",
        "created_at": "t",
        "size": 1,
    }
    place = home.instance("one").snapshots / "a"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps(manifest))
    plan = Plan(profile, FACTS, parse_instance_id("other"), {})
    assert find_snapshot(home, "one@a", plan) is None, "its disk has no template beneath"
    # Everything else is of the new profile.
    grown = replace(profile, resources=replace(profile.resources, vcpus=7, memory=9000))
    assert find_snapshot(home, "one@a", replace(plan, profile=grown)) is None
    image = replace(FACTS.image, digest="1" * 64)
    for wrong in (
        replace(plan, profile=replace(profile, resources=replace(profile.resources, disk=4096))),
        replace(plan, facts=replace(FACTS, image=image)),
    ):
        with pytest.raises(UsageError, match="the profile asks for") as refused:
            find_snapshot(home, "one@a", wrong)
        assert "keeps the image and the disk" in refused.value.hint
