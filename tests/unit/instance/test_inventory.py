"""What `gc` and `list` do with what they did not expect, and commands with a home that is none."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import BusyError, HostError, ProvisionError, UsageError
from ktrdr_vm.evidence.reader import read_report
from ktrdr_vm.host.clock import later
from ktrdr_vm.host.job import find_job, parse_job
from ktrdr_vm.host.journal import Journal, is_locked, locked, read_journal
from ktrdr_vm.host.paths import Home, find_home
from ktrdr_vm.host.runs import find_run
from ktrdr_vm.instance import inventory as discovery
from ktrdr_vm.instance.garbage import collect_expired, collect_garbage, collect_job
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import find_instances
from tests.fakes.libvirt import FakeLibvirt, make_domain


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(discovery, "list_tables", lambda _: [])
    monkeypatch.setattr(discovery, "list_links", lambda *_: {})
    made = Home(tmp_path)
    made.create()
    return made


@pytest.fixture
def destroyed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(Instance, "destroy", lambda self: calls.append(self.identity.instance_id))
    return calls


def add(home: Home, name: str, text: str = "") -> Path:
    home.instance(name).directory.mkdir()
    if text:
        home.instance(name).journal.write_text(text)
    return home.instance(name).journal


def collect(home: Home, libvirt: Any) -> list[str]:
    return [row["instance_id"] for row in collect_garbage(home, libvirt, dry_run=False)]


def test_strange_names_and_newer_journals_hide_nothing(home: Home, destroyed: list[str]) -> None:
    (home.instances / "lost+found").mkdir()
    (home.instances / "a-file").write_text("")
    add(home, "newer", '{"schema_version": 99}')
    Journal(add(home, "dead"), "dead").save()
    assert [entry.instance_id for entry in find_instances(home, FakeLibvirt())] == ["dead", "newer"]
    assert "dead" in collect(home, FakeLibvirt()) and "dead" in destroyed


def test_a_list_has_the_revision_of_each(home: Home) -> None:
    revision = f"{'0' * 12}-{'a' * 16}-3"
    for name in ("dead", "one"):
        Journal(add(home, name), name).save()
    home.instance("one").guard.mkdir()
    (home.instance("one").guard / "revision").write_text(revision)
    found = find_instances(home, FakeLibvirt())
    assert [entry.to_json()["revision"] for entry in found] == ["", revision]


def test_what_a_person_lives_in_stays_when_its_journal_is_lost(home: Home, destroyed: list[str]) -> None:
    add(home, "dev", "{damaged")
    assert (
        collect(home, FakeLibvirt(make_domain("dev", home.root, "interactive"), make_domain("old", home.root)))
        == ["old"]
        == destroyed
    )


def test_what_is_kept_between_looking_and_locking_stays(
    home: Home, destroyed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(add(home, "one"), "one")
    journal.save()
    found = find_instances(home, FakeLibvirt())
    journal.kept = True
    journal.save()
    monkeypatch.setattr(discovery, "find_instances", lambda *_: found)
    assert collect(home, FakeLibvirt()) == [] == destroyed


def test_what_a_command_holds_is_left_until_it_lets_go(home: Home, destroyed: list[str]) -> None:
    """Its time to live has ended, and nothing else keeps it: it is interactive, and a person wanted it kept."""
    Journal(add(home, "one"), "one", mode="interactive", kept=True, expires_at=later(-1)).save()
    with locked(home.lock("one"), "the instance one"):
        assert collect_expired(home, FakeLibvirt()) == []
        assert collect(home, FakeLibvirt()) == [] == destroyed
    assert [row["instance_id"] for row in collect_expired(home, FakeLibvirt())] == ["one"] == destroyed
    assert collect(home, FakeLibvirt()) == ["one"]


def test_a_job_that_has_ended_leaves_none_of_its_instances(home: Home, destroyed: list[str]) -> None:
    for name, words in {
        "mine": {"job": "slurm:7"},
        "kept": {"job": "slurm:7", "kept": True},
        "busy": {"job": "slurm:7"},
        "suspended": {"job": "slurm:7", "kept": True, "state": "suspended"},
        "other": {"job": "slurm:70"},
        "nobody": {},
    }.items():
        Journal(add(home, name), name, **words).save()  # type: ignore[arg-type]
    names = ("mine", "kept", "busy", "other", "nobody")
    libvirt = FakeLibvirt(*(make_domain(name, home.root) for name in names))
    assert [row["action"] for row in collect_job(home, libvirt, "slurm:7", dry_run=True)] == ["would remove"] * 3
    with locked(home.lock("busy"), "the instance busy"):
        rows = {row["instance_id"]: row["action"] for row in collect_job(home, libvirt, "slurm:7", dry_run=False)}
    assert rows == {"busy": "failed", "kept": "removed", "mine": "removed"} and sorted(destroyed) == ["kept", "mine"]


def test_what_a_killed_job_was_building_and_had_unpacked_is_not_left(home: Home, destroyed: list[str]) -> None:
    """A template names no job, and a workspace has no instance."""
    for name in ("killed", "running"):
        (home.workspaces / name).mkdir(parents=True)
        (home.workspaces / name / "file").touch()
    half = home.templates / ".new-0123456789abcdef"
    half.mkdir()
    Journal(add(home, "template--of-a-person"), "template--of-a-person").save()
    libvirt = FakeLibvirt(
        make_domain("template--0123456789ab", home.root), make_domain("template--of-a-person", home.root)
    )

    def collect_dead(*, dry_run: bool = False) -> list[str]:
        return [row["instance_id"] for row in collect_job(home, libvirt, "slurm:7", dry_run=dry_run)]

    with locked(home.lock("request-running"), "it"), locked(home.locks / "template-0123456789abcdef.lock", "it"):
        assert collect_dead(dry_run=True) == ["killed"] and (home.workspaces / "killed").exists()
        assert collect_dead() == ["killed"] and destroyed == [] and half.exists()
    found = collect_dead()
    assert found == ["template--0123456789ab", "running", ".new-0123456789abcdef"]
    assert destroyed == ["template--0123456789ab"] and not half.exists()
    assert list(home.workspaces.iterdir()) == list(home.locks.iterdir()) == []


def test_the_job_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert find_job() == ""
    for value, job in (("12", "slurm:12"), ("1; rm", ""), ("", ""), ("9" * 40, "")):
        monkeypatch.setenv("SLURM_JOB_ID", value)
        assert find_job() == job
    for word in ("12", "slurm:", "slurm:x", "pid:1", "slurm:1 "):
        with pytest.raises(UsageError, match="is not a job"):
            parse_job(word)


def test_a_template_that_is_being_built_is_no_garbage(home: Home, destroyed: list[str]) -> None:
    libvirt = FakeLibvirt(make_domain("template--0123456789ab", home.root))
    with locked(home.locks / "template-0123456789abcdef.lock", "the template"):
        assert collect(home, libvirt) == []
    assert collect(home, libvirt) == ["template--0123456789ab"] == destroyed


def test_looking_at_a_lock_does_not_make_it_busy(home: Home) -> None:
    path = home.locks / "one.lock"
    path.touch(mode=0o600)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert not is_locked(path)
    with pytest.raises(BusyError), locked(path, "it"):
        pass
    os.close(descriptor)


@pytest.mark.parametrize(
    "text",
    ['{"schema_version": 1, "instance_id": "x", "slot": "3"}', '{"schema_version": 1, "resources": null}', "[" * 9999],
)
def test_a_journal_of_the_wrong_kinds_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal.json").write_text(text)
    with pytest.raises(ProvisionError, match="damaged"):
        read_journal(tmp_path / "journal.json")


def test_a_home_that_cannot_be_is_an_error_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be created"):
        Home(tmp_path / "file").create()
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "a,share=on"))
    with pytest.raises(UsageError, match="state directory"):
        find_home()


def test_every_spelling_of_a_home_is_one_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    for spelled in ("../link", ".", str(tmp_path / "real/")):
        monkeypatch.setenv("KTRDR_VM_HOME", spelled)
        assert find_home().root == tmp_path / "real"


@pytest.mark.parametrize("run_id", ["..", ".", "dead"])
def test_a_run_without_a_report_is_said(home: Home, run_id: str) -> None:
    (home.runs / "one/dead").mkdir(parents=True)
    with pytest.raises(UsageError):
        read_report(find_run(home, "one", run_id))


def test_half_built_images_and_templates_are_garbage_unless_somebody_builds_them(home: Home) -> None:
    digest, key = "a" * 64, "b" * 32
    (home.images / f".new-{digest}-x1y2/scratch").mkdir(parents=True)
    (home.templates / f".new-{key}").mkdir()
    (home.templates / key).mkdir()
    with locked(home.locks / f"template-{key}.lock", "the template"):
        assert len(collect_garbage(home, FakeLibvirt(), dry_run=True)) == 1
        assert collect(home, FakeLibvirt()) == [f".new-{digest}-x1y2"]
    assert collect(home, FakeLibvirt()) == [f".new-{key}"]
    assert [path.name for path in home.templates.iterdir()] == [key] and list(home.images.iterdir()) == []
