"""A clone that came as an archive has pipes, devices and files of any size where Git reads: it is refused, or read
within bounds of time and memory. Real Git, no VM."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.evidence.work import write_work
from ktrdr_vm.guest.commits import list_changed
from ktrdr_vm.guest.loose_names import list_beneath
from ktrdr_vm.guest.push import _make_bundle as push_make_bundle
from ktrdr_vm.guest.workspace import copy_in, require_clean
from ktrdr_vm.guest.workspace_parts import list_submodules
from ktrdr_vm.host import git as host_git
from ktrdr_vm.host.git import open_view
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.init.survey import survey_repository
from ktrdr_vm.inputs.committed_files import write_files
from ktrdr_vm.places.history import _write as history_write
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Workspace
from tests.fakes.guest import FolderGuest

# Names that Git, `init` or a gate reads by themselves, at the top and in a folder of tracked files.
NAMES = [".gitattributes", ".gitignore", ".gitmodules", ".mailmap", ".env", "compose.yaml", "Makefile", ".lfsconfig"]
# Seconds. Git waits at a pipe until its own limit, which is far beyond.
SOON = 30


def git(where: Path, *words: str, stdin: bytes = b"") -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *settings, *words], cwd=where, check=True, capture_output=True, input=stdin)
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, and a change of each tracked file."""
    monkeypatch.setattr(host_git, "LIMIT", 2.0 * SOON)
    top = tmp_path / "r"
    (top / "sub").mkdir(parents=True)
    git(top, "init", "-q")
    for content in ("one", "two"):
        for name in ("a", "sub/b"):
            (top / name).write_text(content)
        git(top, "add", "-A")
        git(top, "commit", "-qm", content)
    for name in ("a", "sub/b"):
        (top / name).write_text("changed")
    return top


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    """Read without end, as root's `tar` makes it of an archive."""
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def ends_soon(act: Callable[[], Any]) -> BaseException | None:
    """The error of an act, which ends in time."""
    met: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            met.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive(), "it waits"
    assert not met or isinstance(met[0], KtrdrError), met
    return met[0] if met else None


def compare(top: Path, tmp_path: Path) -> list[tuple[str, Callable[[], Any]]]:
    """Everything that a command does with a clone."""
    found, document = (
        find_repository(top),
        {
            "version": 1,
            "name": "p",
            "image": "debian-13-docker",
            "workload": {"command": ["true"]},
            "workspace": {"source": "."},
        },
    )
    base, notes = git(top, "rev-parse", "HEAD~1"), list[str]()

    def changed() -> None:
        with open_view(found.place) as view:
            list_changed(view, base, found.commit)

    def write() -> None:
        with open_view(found.place) as view, write_files(view, base):
            pass

    def push() -> None:
        with open_view(found.place) as view, (tmp_path / "pushed").open("wb") as bundle:
            push_make_bundle(view, found, found.commit, [base], bundle)

    def submit() -> None:
        with open_view(found.place) as view:
            history_write(view, tmp_path / "sent", ["HEAD", f"^{base}"])

    everything = Workspace(include=("**",))
    return [
        ("copy", lambda: copy_in(found, everything, FolderGuest(tmp_path / "guest"), "root", "a", notes.append)),
        ("clean", lambda: require_clean(found, Workspace(uncommitted="refuse"))),
        ("beneath", lambda: list_beneath(found, build_profile(document))),
        ("patches", lambda: write_work(found, base, found.commit, tmp_path)),
        ("changed", changed),
        ("write", write),
        ("push", push),
        ("submit", submit),
        ("survey", lambda: survey_repository(top)),
    ]


@pytest.mark.parametrize("make", [make_pipe, pytest.param(make_device, marks=pytest.mark.host_root)])
@pytest.mark.parametrize("folder", ["", "sub/"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_at_a_pipe_or_reads_a_device(
    repository: Path, tmp_path: Path, name: str, folder: str, make: Callable[[Path], None]
) -> None:
    make(repository / folder / name)
    for what, act in compare(repository, tmp_path):
        error = ends_soon(act)
        refused = name == ".gitattributes" and what in ("copy", "clean", "beneath")
        expected = f"{folder}{name} is neither a file nor a folder" if refused else ""
        if refused:
            assert isinstance(error, UsageError) and expected in str(error), what
        elif what != "clean":
            assert error is None, (what, error)


@pytest.mark.parametrize("make", [make_pipe, pytest.param(make_device, marks=pytest.mark.host_root)])
def test_a_tracked_file_that_became_a_pipe_is_named_and_left_out(
    repository: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    (repository / "sub/b").unlink()
    make(repository / "sub/b")
    notes: list[str] = []
    found = find_repository(repository)
    assert (
        ends_soon(lambda: copy_in(found, Workspace(), FolderGuest(tmp_path / "guest"), "root", "a", notes.append))
        is None
    )
    assert any(note.startswith("sub/b was not copied") for note in notes)


def make_bomb(top: Path) -> None:
    """A commit of eight trees that name 10^7 files."""
    blob = git(top, "hash-object", "-w", "--stdin", stdin=b"x").encode()
    tree = git(top, "mktree", stdin=b"".join(b"100644 blob %s\tf%d\n" % (blob, number) for number in range(10)))
    for _ in range(6):
        tree = git(
            top, "mktree", stdin=b"".join(b"040000 tree %s\td%d\n" % (tree.encode(), number) for number in range(10))
        )
    (top / ".git/refs/heads/main").write_text(git(top, "commit-tree", tree, "-m", "x") + "\n")


def test_trees_that_name_millions_of_files_are_refused(repository: Path) -> None:
    make_bomb(repository)
    found = find_repository(repository)
    with open_view(found.place) as view, pytest.raises(UsageError, match="cannot be listed"):
        list_submodules(view, found, lambda _: None)
    with pytest.raises(UsageError, match="uncommitted changes cannot be listed"):
        require_clean(found, Workspace(uncommitted="refuse"))


def test_every_call_of_git_has_a_limit_of_memory(repository: Path) -> None:
    with open_view(find_repository(repository).place) as view:
        for one in (view, view.apart):
            said = one.git("-c", "alias.limits=!cat /proc/self/limits", "limits").text
            [line] = [line for line in said.splitlines() if line.startswith("Max data size")]
            assert int(line.split()[3]) <= 4 << 30
