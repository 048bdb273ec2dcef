"""A partial clone is copied with what it has, or refused in one error. Nothing is fetched into it, from a remote that
answers or not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_commits import git
from test_workspace_parts import commit

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.commits import pull_commits
from ktrdr_vm.guest.workspace import copy_in, copy_returned
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.profile.model import Workspace
from tests.fakes.guest import FolderGuest


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    place = tmp_path / "upstream"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    for text in ("one", "two", "three"):
        commit(place, "a.txt", text)
        commit(place, "d/b.txt", f"{text} in d")
    git(place, "tag", "v3")
    git(place, "config", "uploadpack.allowFilter", "true")
    git(place, "config", "uploadpack.allowAnySHA1InWant", "true")
    return place


def clone(upstream: Path, tmp_path: Path, *words: str, answers: bool = True) -> Path:
    git(tmp_path, "clone", "-q", *words, f"file://{upstream}", "clone")
    if not answers:
        git(tmp_path / "clone", "remote", "set-url", "origin", "ssh://nobody@192.0.2.1/x")
    return tmp_path / "clone"


def list_files(place: Path) -> list[tuple[str, int, int]]:
    """Everything in the Git folder, with size and time."""
    found = [path for path in (place / ".git").rglob("*") if path.is_file()]
    return sorted((str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in found)


def enter(place: Path, tmp_path: Path, name: str = "guest") -> tuple[Path, list[str]]:
    notes: list[str] = []
    copy_in(find_repository(place), Workspace(), FolderGuest(tmp_path / name), "root", "a", notes.append)
    return tmp_path / name, notes


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    "words", [["--filter=blob:none"], ["--filter=tree:0"], ["--filter=blob:none", "--depth=2"]], ids=" ".join
)
def test_the_commit_is_copied_without_the_history_and_nothing_is_fetched(
    upstream: Path, tmp_path: Path, words: list[str], answers: bool
) -> None:
    place = clone(upstream, tmp_path, *words, answers=answers)
    (place / "a.txt").write_text("changed")
    before = list_files(place)
    guest, notes = enter(place, tmp_path)
    assert list_files(place) == before
    assert (guest / "a.txt").read_text() == "changed" and (guest / "d/b.txt").read_text() == "three in d"
    assert git(guest, "status", "--porcelain") == "M a.txt" and git(guest, "rev-list", "--count", "HEAD") == "1"
    assert git(guest, "fsck", "--full", "--strict") == "" and any(
        "partial clone" in one and "--no-filter" in one for one in notes
    )


@pytest.mark.parametrize("words", [["--filter=blob:none"], ["--filter=tree:0"]], ids=" ".join)
def test_work_comes_back_into_a_partial_clone_and_is_verified(upstream: Path, tmp_path: Path, words: list[str]) -> None:
    place = clone(upstream, tmp_path, *words, answers=False)
    guest, _ = enter(place, tmp_path)
    commit(guest, "work/one", "1")
    made = commit(guest, "a.txt", "the work")
    found, identity = find_repository(place), parse_instance_id("stream-a")
    there: Any = FolderGuest(guest, tmp_path / "made.bundle")
    [returned] = pull_commits(found, found.commit, "/workspace", there, identity).refs
    assert returned.commit == made and returned.changed == ("a.txt", "work/one")
    fresh, repository = FolderGuest(tmp_path / "fresh"), replace(found, commit=made, ref=returned.ref)
    copy_returned(repository, Workspace(), fresh, "root", "a", lambda _: None, loose=None)  # type: ignore[arg-type]
    assert (fresh.folder / "a.txt").read_text() == "the work" and git(
        fresh.folder, "rev-list", "--count", "HEAD"
    ) == "3"


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("words", [["--filter=blob:none", "--no-checkout"], ["--filter=tree:0", "--no-checkout"], ["--filter=blob:none", "--sparse"]], ids=" ".join)  # fmt: skip
def test_a_commit_that_is_not_there_is_one_error(
    upstream: Path, tmp_path: Path, words: list[str], answers: bool
) -> None:
    place = clone(upstream, tmp_path, *words, answers=answers)
    before = list_files(place)
    with pytest.raises(UsageError, match="partial clone, and objects of") as met:
        enter(place, tmp_path)
    assert "git fetch --refetch --no-filter" in met.value.hint and list_files(place) == before


def test_the_advice_completes_it(upstream: Path, tmp_path: Path) -> None:
    place = clone(upstream, tmp_path, "--filter=blob:none")
    git(place, "fetch", "-q", "--refetch", "--no-filter")
    guest, notes = enter(place, tmp_path)
    assert git(guest, "rev-list", "--count", "HEAD") == "6" and git(guest, "describe", "--tags") == "v3" and notes == []
