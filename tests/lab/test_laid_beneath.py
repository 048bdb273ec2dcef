"""The files of the host that no commit has are in the fresh VM as they were in that of the workload, beneath its
commit. Real Git, no VM."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_commits import git
from test_workspace_parts import add_submodule, commit, library, repository

from ktrdr_vm.guest.loose_files import open_stored
from ktrdr_vm.guest.workspace import Laid, copy_in, copy_returned
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.profile.model import Workspace
from tests.fakes.guest import FolderGuest

__all__ = ["library", "repository"]  # fixtures


def judge(
    repository: Path, tmp_path: Path, work: Callable[[Path], object], **workspace: object
) -> tuple[Path, Path, Laid]:
    """Copy in, let the workload work, change the host meanwhile, and copy its commit into the fresh VM. Both folders,
    and what was laid."""
    found, wanted = find_repository(repository), Workspace(**workspace)  # type: ignore[arg-type]
    first, fresh, stored, notes = tmp_path / "first", tmp_path / "fresh", tmp_path / "loose", list[str]()
    copy_in(found, wanted, FolderGuest(first), "root", "a", notes.append, keep=stored)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (stored, *sorted(stored.iterdir()))] == [0o700, 0o600, 0o600]
    work(first)
    subprocess.run(
        ["git", "fetch", "-q", "--no-recurse-submodules", str(first), "+HEAD:refs/ktrdr/a/main"],
        cwd=repository,
        check=True,
    )
    (repository / "a.txt").write_text("changed by the person since")
    with open_stored(stored) as loose:
        assert loose is not None
        shutil.rmtree(stored)
        returned = replace(found, commit=git(repository, "rev-parse", "refs/ktrdr/a/main"), ref="refs/ktrdr/a/main")
        laid = copy_returned(returned, wanted, FolderGuest(fresh), "root", "a", notes.append, loose=loose)
    return first, fresh, laid


@pytest.fixture
def loose(repository: Path) -> Path:
    """A repository with an ignored `.env` and with changed, deleted and replaced files."""
    for name in ("b.txt", "gone.txt", "dir/x"):
        commit(repository, name, name)
    commit(repository, ".gitignore", ".env\nlocal/\n")
    (repository / ".env").write_text("PORT=1\n")
    (repository / "local").mkdir()
    (repository / "local/settings").write_text("mine")
    (repository / "a.txt").write_text("a fix that nobody committed")
    (repository / "gone.txt").unlink()
    (repository / "script").write_text("#!/bin/sh\n")
    (repository / "script").chmod(0o755)
    (repository / "link").symlink_to("a.txt")
    git(repository, "add", "script", "link")
    return repository


def test_what_the_person_gave_is_beneath_the_commit(loose: Path, tmp_path: Path) -> None:
    """The kind: whatever the gates of the base had and the workload did not commit is there in the fresh VM, and
    nothing else is."""

    def work(place: Path) -> None:
        (place / "b.txt").write_text("the work")
        git(place, "commit", "-q", "-m", "work", "--", "b.txt")
        (place / "a.txt").write_text("left uncommitted by the workload")
        (place / ".env").write_text("changed by the workload")

    _, fresh, laid = judge(loose, tmp_path, work, include=(".env", "local/**"))
    assert (fresh / "a.txt").read_text() == "a fix that nobody committed"
    assert ((fresh / ".env").read_text(), (fresh / "local/settings").read_text()) == ("PORT=1\n", "mine")
    assert (fresh / "b.txt").read_text() == "the work" and not (fresh / "gone.txt").exists()
    assert os.readlink(fresh / "link") == "a.txt" and os.access(fresh / "script", os.X_OK)
    assert laid == Laid(("a.txt", "link", "script", ".env", "local/settings"), ("gone.txt",))


def test_what_the_commit_changes_it_decides_and_is_named(loose: Path, tmp_path: Path) -> None:
    def work(place: Path) -> None:
        (place / "a.txt").write_text("the workload's own")
        (place / "gone.txt").write_text("needed again")
        git(place, "add", "-f", "a.txt", "gone.txt", ".env")
        git(place, "commit", "-qm", "work")

    _, fresh, laid = judge(loose, tmp_path, work, include=(".env",))
    assert ((fresh / "a.txt").read_text(), (fresh / "gone.txt").read_text()) == ("the workload's own", "needed again")
    # The workload committed .env as it was given: neither is overruled.
    assert laid.overruled == ("a.txt", "gone.txt") and ".env" not in laid.files
    assert git(fresh, "status", "--porcelain").splitlines() == ["?? link", "?? script"]


def test_a_workload_that_commits_everything_leaves_nothing_to_lay(loose: Path, tmp_path: Path) -> None:
    def work(place: Path) -> None:
        git(place, "add", "-A")
        git(place, "commit", "-qm", "everything")

    _, fresh, laid = judge(loose, tmp_path, work)
    assert laid == Laid() and git(fresh, "status", "--porcelain") == ""


@pytest.mark.parametrize("change", ["file to folder", "folder to file", "removed"])
def test_a_file_in_the_place_of_a_folder_is_decided_by_the_commit(loose: Path, tmp_path: Path, change: str) -> None:
    (loose / "dir/x").write_text("changed")

    def work(place: Path) -> None:
        if change == "file to folder":
            git(place, "rm", "-qf", "a.txt")
            commit(place, "a.txt/inner", "inner")
        elif change == "folder to file":
            git(place, "rm", "-rqf", "dir")
            commit(place, "dir", "a file")
        else:
            git(place, "rm", "-rqf", "dir", "a.txt")
            git(place, "commit", "-qm", "removed")

    _, fresh, laid = judge(loose, tmp_path, work)
    decided = {"file to folder": ("a.txt",), "folder to file": ("dir/x",), "removed": ("a.txt", "dir/x")}[change]
    assert set(decided) <= set(laid.overruled) and not set(decided) & set(laid.files)
    assert git(fresh, "diff", "--name-only", "HEAD", "--", *decided) == ""


def test_changes_in_submodules_are_laid_where_the_pointer_is_the_same(
    repository: Path, library: Path, tmp_path: Path
) -> None:
    for path in ("vendor/one", "vendor/two"):
        add_submodule(repository, library, path)
        (repository / path / "library.txt").write_text(f"changed in {path}")

    def work(place: Path) -> None:
        git(place / "vendor/two", "commit", "-q", "--allow-empty", "-m", "inner")
        git(place, "commit", "-qm", "a pointer", "--", "vendor/two")

    _, fresh, laid = judge(repository, tmp_path, work)
    assert (fresh / "vendor/one/library.txt").read_text() == "changed in vendor/one"
    assert laid.files == ("vendor/one/library.txt",) and laid.overruled == ("vendor/two/library.txt",)


@pytest.mark.parametrize("name", ["a b", "new\nline", "ü", "-n", "x missing", "'q\"", "tab\there"])
def test_odd_names(repository: Path, tmp_path: Path, name: str) -> None:
    commit(repository, f"d/{name}", "one")
    commit(repository, f"e/{name}", "one")
    for folder in "de":
        (repository / folder / name).write_text("changed on the host")

    def work(place: Path) -> None:
        (place / "d" / name).write_text("the work")
        git(place, "commit", "-qm", "work", "--", f"d/{name}")

    _, fresh, laid = judge(repository, tmp_path, work)
    assert (fresh / "d" / name).read_text() == "the work" and (fresh / "e" / name).read_text() == "changed on the host"
    assert (laid.files, laid.overruled) == ((f"e/{name}",), (f"d/{name}",))


def test_a_vm_whose_files_are_not_known_is_said(repository: Path, tmp_path: Path) -> None:
    found = find_repository(repository)
    guest = FolderGuest(tmp_path / "g")
    assert copy_returned(found, Workspace(), guest, "root", "a", lambda _: None, loose=None).unknown
