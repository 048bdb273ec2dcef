"""The store of templates: what is listed, and what `gc` removes and keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.templates import templates
from ktrdr_vm.host.paths import Home
from ktrdr_vm.templates import store

KEY = ("0123456789abcdef" * 4)[: store.KEY_LENGTH]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path)
    for folder in (home.templates / KEY, home.locks):
        folder.mkdir(parents=True)
    monkeypatch.setattr(store, "read_qemu_version", lambda *_: "QEMU 1")
    image = SimpleNamespace(content_digest="content")
    monkeypatch.setattr(store, "ImageStore", lambda _: SimpleNamespace(find={"image": image}.get))
    monkeypatch.setattr("ktrdr_vm.host.paths.find_home", lambda: home)
    return home


def write(home: Home, days: float = 0, **more: Any) -> None:
    manifest = {
        "key": KEY, "owner": 1000, "image": "image", "content": "content", "shape": [2, 4096, 30720],
        "created_at": "2026-01-01T00:00:00Z", "seconds": 9.0, "format": store.FORMAT, "settle": store.SETTLE,
        "emulator": "/bin/sh", "qemu": "QEMU 1", **more,
    }  # fmt: skip
    path = home.templates / KEY / "manifest.json"
    path.write_text(json.dumps(manifest))
    used = path.stat().st_mtime - days * 86_400
    os.utime(path, (used, used))


@pytest.mark.parametrize(
    ("days", "more", "reason"),
    [
        (13.9, {}, ""),
        (14.1, {}, "it was not used for 14 days"),
        (0, {"image": "another"}, "its image no longer exists"),
        (0, {"content": "rebuilt"}, "its image no longer exists"),
        (0, {"qemu": "QEMU 2"}, "it was created by another version of QEMU"),
        (0, {"emulator": "/nowhere"}, "it was created by another version of QEMU"),
        (0, {"format": -1}, "it was created by another version of ktrdr-vm"),
    ],
)
def test_what_gc_removes(home: Home, days: float, more: dict[str, Any], reason: str) -> None:
    write(home, days, **more)
    assert store.collect_templates(home, [KEY], dry_run=False) == []
    planned = store.collect_templates(home, [], dry_run=True)
    assert [row["reason"] for row in planned] == ([reason] if reason else []) and (home.templates / KEY).exists()
    store.collect_templates(home, [], dry_run=False)
    assert (home.templates / KEY).exists() == (not reason)


def test_the_list_shows_what_the_page_says(home: Home) -> None:
    made_from = {"repository": "/srv/code", "branch": "main", "commit": "c" * 40, "tree": "t" * 40}
    write(home, kind="project shop", made_from=made_from)
    shown = CliRunner().invoke(templates, ["list"]).output
    for part in (KEY, "project shop", "uid 1000", "image", "2 vCPUs, 4096 MiB, disk 30720 MiB", "created 2026-01-01"):
        assert part in shown
    assert "used 2" in shown and "MiB on disk" in shown and "from /srv/code at main cccccccccccc" in shown
    write(home)
    assert "base" in CliRunner().invoke(templates, ["list"]).output


@pytest.mark.parametrize(("boot", "forked"), [("direct", True), ("bootloader", False)])
def test_a_stock_image_is_not_forked(boot: str, forked: bool) -> None:
    plan: Any = SimpleNamespace(facts=SimpleNamespace(image=SimpleNamespace(boot=boot)))
    assert store.fits(plan) == forked
