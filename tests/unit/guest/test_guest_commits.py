"""What the guest's commits may cost and hide on the host, and names that are no UTF-8. Git is a stand-in that
answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import GuestError, ProvisionError, UsageError
from ktrdr_vm.guest import commits, loose_names
from ktrdr_vm.guest.commits import ReturnedRef
from ktrdr_vm.host.git import read_shallow
from ktrdr_vm.host.process import Completed
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.report.model import Commits
from ktrdr_vm.run.warnings import find_first_lines

IDENTITY = parse_instance_id("one")
Answer = Callable[[tuple[str, ...]], bytes]


class Git:
    def __init__(self, answer: Answer) -> None:
        self.asked: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self._answer = answer
        self.directory = Path("/nonexistent")
        self.apart = self

    @contextlib.contextmanager
    def open(self, _place: object, *, writing: bool = False) -> Iterator[Git]:
        yield self

    @contextlib.contextmanager
    def quarantine(self) -> Iterator[Git]:
        yield self

    def git(
        self, *words: str, check: bool = True, stdout: int | None = None, bounds: tuple[str, ...] = ()
    ) -> Completed:
        self.asked.append((words, bounds))
        said = self._answer(words)
        if stdout is not None:
            os.write(stdout, said)
            said = b""
        return Completed(words, 0, said, b"")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path, "main", "a" * 40, (0, 0), "demo")


def unpack(repository: Repository, git: Git, monkeypatch: pytest.MonkeyPatch) -> tuple[ReturnedRef, ...]:
    monkeypatch.setattr(commits, "open_view", git.open)
    return commits.accept_bundle(repository, "a" * 40, Path("/bundle"), IDENTITY)


def test_a_changed_playbook_does_not_hide_behind_a_thousand_files(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"a/{number:05}" for number in range(3000)] + ["playbooks/unit.yaml"]

    def answer(words: tuple[str, ...]) -> bytes:
        return {"bundle": f"{'b' * 40} refs/heads/x\n", "diff": "\0".join(names)}.get(words[0], "").encode()

    returned = unpack(repository, Git(answer), monkeypatch)
    gathered: Any = SimpleNamespace(
        repository=repository,
        loaded=SimpleNamespace(source="p.yaml", origins={}),
        playbooks=(),
        plan=SimpleNamespace(observe=False),
        base=None,
    )
    lines = find_first_lines([Commits(one.ref, one.commit, one.changed) for one in returned], gathered)
    assert len(lines) == 1 and "playbooks/unit.yaml" in lines[0]


def test_trees_that_name_too_many_files_are_refused_within_bounds(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(words: tuple[str, ...]) -> bytes:
        if words[0] == "diff":
            raise ProvisionError("git failed: out of memory", hint="")
        return f"{'b' * 40} refs/heads/x\n".encode() if words[0] == "bundle" else b""

    git = Git(answer)
    with pytest.raises(GuestError, match="cannot be listed"):
        unpack(repository, git, monkeypatch)
    assert next(bounds for words, bounds in git.asked if words[0] == "diff")[0] == "prlimit"
    # It is looked at apart: the repository itself was not written to.
    assert [words[0] for words, _ in git.asked].count("fetch") == 1


def test_names_that_are_no_utf8_are_kept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"diff": b"M\0a\xff\nb\0D\0-rf \xfe\0", "ls-files": b"u\xfd\0"}
    git: Any = Git(lambda words: listed[words[0]])
    monkeypatch.setattr(loose_names, "refuse_special", lambda view: None)
    changed, deleted = loose_names.find_uncommitted(git, "a" * 40)
    assert [os.fsencode(name) for name in (*changed, *deleted)] == [b"a\xff\nb", b"-rf \xfe"]
    assert loose_names._list_untracked(git, "*") == [os.fsdecode(b"u\xfd")]


def test_the_end_of_a_shallow_history_goes_along_and_nothing_else(repository: Repository) -> None:
    place = repository.root / ".git/shallow"
    place.parent.mkdir()
    common = os.open(place.parent, os.O_RDONLY)
    view: Any = SimpleNamespace(checkout=SimpleNamespace(common=common, common_path=place.parent))
    try:
        assert read_shallow(view) == b""
        place.write_bytes(b"a" * 40 + b"\nroot:x:0:0\n")
        assert read_shallow(view) == b"a" * 40 + b"\n"
        place.unlink()
        (repository.root / "secret").write_bytes(b"b" * 40 + b"\n")
        place.symlink_to(repository.root / "secret")
        with pytest.raises(UsageError, match="shallow"):
            read_shallow(view)
    finally:
        os.close(common)
