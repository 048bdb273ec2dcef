"""What Git would open in a repository from an archive is a regular file of it: no link, and no pipe at which it would
wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.checkout import open_checkout
from ktrdr_vm.host.git import View, read_symbolic_ref

PARTS = [
    "HEAD",
    "index",
    "packed-refs",
    "shallow",
    "refs/heads/main",
    "refs/heads/deep/er",
    "objects/aa/bb",
    "objects/pack/pack-a.idx",
    "objects/info/alternates",
]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "broken link": lambda path: path.symlink_to("none"),
    "socket": bind,
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    top = tmp_path / "r"
    for folder in ("refs/heads/deep", "objects/aa", "objects/pack", "objects/info"):
        (top / ".git" / folder).mkdir(parents=True)
    (top / ".git/HEAD").write_text("ref: refs/heads/main\n")
    for name in ("index", "packed-refs", "refs/heads/main"):
        (top / ".git" / name).write_text("")
    return top


def test_a_plain_repository_is_opened(repository: Path) -> None:
    with open_checkout(Place(repository)) as checkout:
        assert checkout.head == "ref: refs/heads/main"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_no_file_is_refused_at_once(
    repository: Path, part: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".git" / part).unlink(missing_ok=True)
    monkeypatch.chdir((repository / ".git" / part).parent)
    KINDS[kind](Path((repository / ".git" / part).name))
    with pytest.raises(UsageError, match=r"\.git"), open_checkout(Place(repository)):
        pass


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ref: refs/remotes/origin/main\n", "refs/remotes/origin/main"),
        ("ref:refs/remotes/origin/a/b", "refs/remotes/origin/a/b"),
        ("0" * 40 + "\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_symbolic_ref_is_read_as_git_writes_it(repository: Path, content: str | None, expected: str) -> None:
    remote = repository / ".git/refs/remotes/origin"
    remote.mkdir(parents=True)
    if content is not None:
        (remote / "HEAD").write_text(content)
    with open_checkout(Place(repository)) as checkout:
        assert read_symbolic_ref(View(checkout, repository, {}), "refs/remotes/origin/HEAD") == expected


def test_a_symbolic_ref_that_became_a_link_is_not_followed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("ref: refs/remotes/origin/main\n")
    with open_checkout(Place(repository)) as checkout:
        (repository / ".git/refs/remotes").symlink_to(tmp_path)
        assert read_symbolic_ref(View(checkout, repository, {}), "refs/remotes/elsewhere") == ""


@pytest.mark.parametrize("part", ["refs/heads/main", "refs/heads/deep/er", "packed-refs", "shallow"])
def test_a_part_that_git_reads_whole_has_a_largest_size(repository: Path, part: str) -> None:
    path = repository / ".git" / part
    path.touch()
    os.truncate(path, 1 << 32)
    with pytest.raises(UsageError, match="is larger than"), open_checkout(Place(repository)):
        pass
