"""The store of templates beside removals that were killed, that another process completes, and that fail."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.templates import store
from ktrdr_vm.templates.key import KEY_LENGTH

KEY = "a" * KEY_LENGTH


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.create()
    return made


def add(home: Home, name: str, key: str = KEY) -> Path:
    """A template whose image no longer exists."""
    folder = home.templates / name
    folder.mkdir()
    manifest = {"key": key, "owner": 0, "image": "0" * 64, "shape": [1, 512, 0], "created_at": "x", "seconds": 1.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def collect(home: Home, *, dry_run: bool = False) -> list[tuple[str, str]]:
    return [(row["action"], row["instance_id"]) for row in store.collect_templates(home, (), dry_run=dry_run)]


@pytest.mark.parametrize("name", [f".gone-{KEY}", f".new-{KEY}-1"])
def test_what_a_killed_process_left_is_no_template(home: Home, name: str) -> None:
    add(home, name)
    assert store.list_templates(home) == []
    assert collect(home, dry_run=True) == []


def test_one_is_removed_beside_a_removal_that_was_killed(home: Home) -> None:
    (add(home, f".gone-{KEY}") / "memory").touch()
    add(home, KEY)
    assert store.remove_template(home, KEY)
    assert not (home.templates / KEY).exists()


def test_one_that_another_process_removes_meanwhile_is_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (KEY, "b" * KEY_LENGTH):
        add(home, key, key)
    find_stale = store._find_stale

    def remove_first(home: Home, template: store.Template) -> str:
        if template.key == KEY:
            shutil.rmtree(home.templates / KEY)
        return find_stale(home, template)

    monkeypatch.setattr(store, "_find_stale", remove_first)
    assert collect(home) == [("removed", f"template {'b' * KEY_LENGTH}")]


def test_one_that_cannot_be_removed_ends_not_the_others(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [KEY, "b" * KEY_LENGTH]
    for key in keys:
        add(home, key, key)

    def fail_first(home: Home, key: str) -> bool:
        if key == KEY:
            raise PermissionError(1, "Operation not permitted", str(home.templates / key))
        return True

    monkeypatch.setattr(store, "remove_template", fail_first)
    assert sorted(collect(home)) == [("failed", f"template {KEY}"), ("removed", f"template {keys[1]}")]


def test_none_is_removed_while_nobody_can_tell_what_an_instance_uses(home: Home) -> None:
    """Its disk may be an overlay on one, and its journal of a newer version of the program."""
    add(home, KEY)
    home.instance("one").directory.mkdir()
    Journal(home.instance("one").journal, "one", plan={"facts": {"image": {"digest": "1" * 64}}}).save()
    home.instance("newer").directory.mkdir()
    home.instance("newer").journal.write_text('{"schema_version": 99}')
    [row] = store.collect_templates(home, (), dry_run=False)
    assert (row["action"], row["instance_id"]) == ("kept", f"template {KEY}") and row["reason"].endswith(": newer")
    assert (home.templates / KEY).exists()
    shutil.rmtree(home.instance("newer").directory)
    assert collect(home) == [("removed", f"template {KEY}")]


@pytest.mark.parametrize(("days", "gone"), [(store.UNUSED_DAYS - 1, False), (store.UNUSED_DAYS, True)])
def test_one_that_was_not_used_for_long_is_removed(
    home: Home, monkeypatch: pytest.MonkeyPatch, days: int, gone: bool
) -> None:
    folder = add(home, KEY)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    fitting = {"content": "c", "format": store.FORMAT, "settle": store.SETTLE}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fitting}))
    used = time.time() - days * 86400 - 60
    os.utime(folder / "manifest.json", (used, used))
    monkeypatch.setattr(store.ImageStore, "find", lambda *_: SimpleNamespace(content_digest="c"))
    assert [row["reason"] for row in store.collect_templates(home, (KEY,), dry_run=False)] == []
    assert bool(collect(home)) is gone and (home.templates / KEY).exists() is not gone
