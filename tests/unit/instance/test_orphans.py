"""What `doctor` shows of objects on the host that belong to no instance, and the way out that it names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance import orphans
from ktrdr_vm.instance.inventory import Found

MARKED = "ktrdr-vm instance_id=one home=01234567"
NAMES = ["one", "two", "a-longer-name", "x" * 63]


def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *found: Found, mark: str = MARKED) -> list[tuple[str, str]]:
    """The orphans on a host with the objects of each of NAMES, which carry `mark`."""
    made = [Identity(name) for name in NAMES]

    def list_links(namespace: str = "") -> dict[str, str]:
        return {"lo": mark} if namespace else {one.tap: mark for one in made} | {"eth0": "", "kvm-of-somebody": ""}

    monkeypatch.setattr(orphans, "find_instances", lambda *_: found)
    monkeypatch.setattr(orphans, "list_links", list_links)
    monkeypatch.setattr(orphans.netns, "list_names", lambda _: [one.namespace for one in made])
    monkeypatch.setattr(orphans, "list_tables", lambda _: [one.table for one in made])
    monkeypatch.setattr(orphans, "read_comment", lambda _: mark)
    libvirt: Any = SimpleNamespace(list_unmarked=lambda _: [] if mark else [one.domain for one in made])
    return orphans.find_orphans(Home(tmp_path), libvirt)


def test_what_carries_a_mark_of_any_state_directory_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(tmp_path, monkeypatch) == []


def test_every_kind_without_a_mark_is_shown_with_the_command_that_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(tmp_path, monkeypatch, mark="")
    for name in NAMES:
        one = Identity(name)
        fixes = (
            f"ip link del {one.tap}",
            f"ip netns del {one.namespace}",
            f"nft delete table inet {one.table}",
            f"virsh destroy {one.domain}; virsh undefine {one.domain}",
        )
        assert set(fixes) <= {fix for _, fix in found}
    assert len(found) == 4 * len(NAMES)


@pytest.mark.parametrize(("kept", "fix"), [(False, "ktrdr-vm gc"), (True, "ktrdr-vm apply, or ktrdr-vm destroy one")])
def test_the_way_out_of_an_incomplete_instance_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, fix: str
) -> None:
    """`gc` does not remove what a person keeps."""
    [(what, named)] = find(tmp_path, monkeypatch, Found("one", kept=kept, seen={"journal"}))
    assert "the instance one is incomplete: no namespace" in what and named == fix


def test_a_damaged_journal_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "instances" / "one").mkdir(parents=True)
    (tmp_path / "instances" / "one" / "journal.json").write_text("{")
    [(what, fix)] = find(tmp_path, monkeypatch)
    assert what.startswith("one: the journal is damaged") and "ktrdr-vm gc" in fix
