"""Folders that another user made are removed at any depth, and a removal that fails is said and costs no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_vm.host import run_removal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.run_removal import collect_runs, remove_old_runs
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.host.tree_removal import remove_tree

DEPTH = 2500


def make_deep(folder: Path) -> None:
    """Folders in folders, as anybody can make them step by step, although the path is longer than a path may be."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=inner)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.symlink("/etc/hostname", "l", dir_fd=inner)
        os.mkfifo("p", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)


def test_a_tree_of_any_depth_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    make_deep(tmp_path / "tree")
    for number in range(3):
        make_deep(tmp_path / f"tree/{number}/x")
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree/0/link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["kept"] and (tmp_path / "kept/file").read_text() == "kept"
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "tree")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept/file").exists()


def test_evidence_of_any_depth_is_removed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    run = home.runs / "one/20200101T000000Z-aaaa"
    make_deep(run / "notes")
    os.utime(run, (0, 0))
    assert [row["action"] for row in collect_runs(home, dry_run=False)] == ["removed"] and not run.exists()
    make_deep(run)
    assert remove_old_runs(run.parent, 0) == [run] and not run.exists()


def test_a_bundle_of_any_depth_is_replaced(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "runs/one/20200101T000000Z-aaaa")
    make_deep(run.path / "bundle")
    with run.build() as made:
        (made / "bundle").write_text("new")
        run.deliver(made, ("bundle",), (os.getuid(), os.getgid()))
    assert (run.path / "bundle").read_text() == "new"


def test_what_cannot_be_removed_is_said_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may change it during the removal, or have mounted something in it."""

    def refuse(path: Path) -> None:
        if path.parent.name == "one":
            raise OSError(16, "Device or resource busy", str(path))
        remove_tree(path)

    monkeypatch.setattr(run_removal, "remove_tree", refuse)
    home = Home(tmp_path)
    for name in ("one", "two"):
        (home.runs / name / "20200101T000000Z-aaaa").mkdir(parents=True)
        os.utime(home.runs / name / "20200101T000000Z-aaaa", (0, 0))
    rows = collect_runs(home, dry_run=False)
    assert [(row["instance_id"].partition("/")[0], row["action"]) for row in rows] == [
        ("one", "failed"),
        ("two", "removed"),
    ]
    assert "Device or resource busy" in rows[0]["reason"]
    assert remove_old_runs(home.runs / "one", 0) == []
