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
