"""Which tags, untracked, hidden and left out files of a repository are in the guest. Real Git, no VM."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_commits import git
from test_workspace_parts import commit, enter, repository

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest import workspace_parts
from ktrdr_vm.guest.workspace import require_clean
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.profile.model import Workspace

__all__ = ["repository"]  # fixture


def test_of_many_tags_the_newest_come_along(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace_parts, "MOST_TAGS", 2)
    for number, name in enumerate(("c", "a", "b")):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2030-01-01T00:00:0{number} +0000")
        git(repository, "tag", "-a", "-m", "x", name)
    guest, _ = enter(repository, tmp_path)
    assert git(guest, "tag").split() == ["a", "b"]


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_the_index_hides_is_one_in_the_guest(repository: Path, tmp_path: Path, flag: str) -> None:
    commit(repository, "b.txt", "one")
    git(repository, "update-index", flag, "a.txt")
    (repository / "a.txt").write_text("hidden from git status")
    assert git(repository, "status", "--porcelain") == ""
    guest, notes = enter(repository, tmp_path)
    assert (guest / "a.txt").read_text() == "hidden from git status"
    assert len(notes) == 1 and notes[0].startswith("a.txt is a change in the guest")
    assert git(guest, "status", "--porcelain") == "M a.txt"


def test_a_sparse_checkout_is_whole_in_the_guest_and_a_note_says_so(repository: Path, tmp_path: Path) -> None:
    commit(repository, "in/x", "x")
    commit(repository, "out/y", "y")
    git(repository, "sparse-checkout", "set", "in")
    assert not (repository / "out/y").exists()
    guest, notes = enter(repository, tmp_path)
    assert (guest / "out/y").read_text() == "y" and git(guest, "status", "--porcelain") == ""
    assert len(notes) == 1 and "is a sparse checkout: the guest also has the 1 files" in notes[0]


def test_what_is_untracked_and_not_named_stays_on_the_host(repository: Path, tmp_path: Path) -> None:
    for name in (".env", "made.txt"):
        (repository / name).write_text("x")
    (repository / "a.txt").write_text("changed")
    for number, (uncommitted, text) in enumerate((("include", "changed"), ("ignore", "one"))):
        guest, _ = enter(repository, tmp_path / str(number), uncommitted=uncommitted, include=(".e*",))
        assert (guest / ".env").exists() and not (guest / "made.txt").exists()
        assert (guest / "a.txt").read_text() == text
    with pytest.raises(UsageError, match=r"the workspace has uncommitted changes: a\.txt"):
        require_clean(find_repository(repository), Workspace(uncommitted="refuse"))
