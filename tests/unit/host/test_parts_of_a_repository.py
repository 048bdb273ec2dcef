"""What Git would open in a repository from an archive is a regular file of it: no link, and no pipe at which it would
wait."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host import checkout
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
    with open_checkout(Place(repository)) as opened:
        assert opened.head == "ref: refs/heads/main"


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


def test_alternates_that_name_each_other_many_times_are_read_once(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_own = checkout.read_own

    def count(folder: int, name: str, limit: int, top: Place) -> bytes | None:
        read.append(name)
        return read_own(folder, name, limit, top)

    monkeypatch.setattr(checkout, "read_own", count)
    folders = [repository / ".git/objects", *(repository / f"o{number}" for number in range(4))]
    for folder, after in itertools.pairwise(folders):
        (folder / "info").mkdir(parents=True, exist_ok=True)
        (folder / "info/alternates").write_text(f"{after}\n" * 20)
    with open_checkout(Place(repository)):
        pass
    assert read.count("alternates") <= len(folders)


def make_linked(workspace: Path, other: Path, name: str) -> bytes:
    """Objects in the workspace, of which `name` is a link to those of the other repository."""
    (workspace / "o/info").mkdir(parents=True)
    if name == "info":
        (workspace / "o/info").rmdir()
    (workspace / "o" / name).symlink_to(other / name)
    return os.fsencode(workspace / "o")


ALTERNATES: dict[str, Callable[[Path, Path], bytes]] = {
    "plain": lambda workspace, other: os.fsencode(other),
    "relative": lambda workspace, other: b"../../../other/objects",
    "quoted": lambda workspace, other: b'"%s"' % os.fsencode(other),
    "quoted by numbers": lambda workspace, other: b'"\\057%s"' % os.fsencode(other)[1:],
    "beyond what is read": lambda workspace, other: b"#" * 10_000 + b"\n" + os.fsencode(other),
    "after a comment": lambda workspace, other: b"# x\r\n" + os.fsencode(other),
    "beside a NUL": lambda workspace, other: os.fsencode(other) + b"\0/../../w",
    "a linked pack": lambda workspace, other: make_linked(workspace, other, "pack"),
    "a linked fan": lambda workspace, other: make_linked(workspace, other, "aa"),
    "a linked info": lambda workspace, other: make_linked(workspace, other, "info"),
    "an alternate of an alternate": lambda workspace, other: make_second(workspace, other),
}


def make_second(workspace: Path, other: Path) -> bytes:
    (workspace / "o/info").mkdir(parents=True)
    (workspace / "o/info/alternates").write_bytes(b'"%s"\n' % os.fsencode(other))
    return os.fsencode(workspace / "o")


@pytest.mark.parametrize("how", ALTERNATES)
def test_objects_of_another_repository_are_refused_however_they_are_named(
    repository: Path, tmp_path: Path, how: str
) -> None:
    """Else the id of a commit would be enough to take another project into a guest."""
    other = tmp_path / "other/objects"
    for name in ("pack", "aa", "info"):
        (other / name).mkdir(parents=True)
    (repository / ".git/objects/info/alternates").write_bytes(ALTERNATES[how](repository, other) + b"\n")
    with pytest.raises(UsageError), open_checkout(Place(repository)):
        pass


def test_objects_in_the_workspace_are_borrowed(repository: Path) -> None:
    (repository / "o/pack").mkdir(parents=True)
    (repository / "o/pack/pack-a.idx").write_text("")
    (repository / ".git/objects/info/alternates").write_text(f"# mine\n{repository}/o\n../../o\n../../none\n")
    with open_checkout(Place(repository)):
        pass
