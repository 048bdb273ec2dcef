"""Every path that a profile names, from the schema: a link, a link on the way, another mount, exchanged in a loop.
Refused, or inside."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrdr_vm.errors import DocumentError, KtrdrError, UsageError
from ktrdr_vm.gates.load import place_playbook
from ktrdr_vm.gates.modules.base import ModuleFailure
from ktrdr_vm.gates.modules.sources import read_source
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.inputs.resolve import Gathered, gather
from ktrdr_vm.instance.resources.mount import require_source
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.schema import PROFILE, Schema

SECRET = "root-s-own-words"
# Conditional: a file that is surely sent must exist.
PLAY = f"- hosts: all\n  tasks:\n    - {{name: {SECRET}, ansible.builtin.copy: {{src: data.txt, dest: /tmp/}}, when: now | bool}}\n"
_LIBC = ctypes.CDLL(None, use_errno=True)


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def find_path_keys(schema: Schema, way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys whose values are names of files or folders of this host."""
    for key, entry in schema.items():
        if not isinstance(entry, dict):
            continue
        here = (*way, key) if key != "schema" else way
        check = entry.get("check_with")
        parsed = [cell.cell_contents for cell in getattr(check, "__closure__", None) or ()]
        if scalars.parse_host_path in parsed or scalars.parse_gate in parsed:
            yield here
        yield from find_path_keys({name: inner for name, inner in entry.items() if isinstance(inner, dict)}, here)


# How each is said, with NAME for what it names. `after` names a gate, not a file; a secret's file is the owner's own
# list.
FILES: dict[tuple[str, ...], dict[str, Any]] = {
    ("extends",): {"extends": "NAME.yaml"},
    ("gates",): {"gates": ["NAME.yaml"]},
    ("prepare", "playbook"): {"workspace": {"source": "."}, "prepare": {"playbook": "NAME.yaml", "key": ["lock"]}},
    ("prepare", "key"): {
        "workspace": {"source": "."},
        "prepare": {"playbook": "playbooks/own.yaml", "key": ["NAME.yaml"]},
    },
    ("workspace", "include"): {"workspace": {"source": ".", "include": ["NAME.yaml"]}},
}
FOLDERS: dict[tuple[str, ...], dict[str, Any]] = {
    ("workspace", "source"): {"workspace": {"source": "NAME", "include": ["**"]}},
    ("mounts", "source"): {"mounts": [{"source": "NAME", "target": "/data"}]},
}
ELSEWHERE = {("secrets", "source", "file"), ("secrets", "broker", "after")}


def test_every_path_of_a_profile_is_tried_here() -> None:
    assert set(find_path_keys(PROFILE)) == FILES.keys() | FOLDERS.keys() | ELSEWHERE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`workspace`, a repository; beside it `other`, one that is none of its business, with the files that are looked
    for."""
    for name in ("workspace", "other"):
        root = tmp_path / name
        (root / "playbooks").mkdir(parents=True)
        (root / "playbooks/own.yaml").write_text(PLAY.replace(SECRET, "own"))
        (root / "lock").write_text("1\n")
        git(root, "init", "-q")
        git(root, "add", ".")
        git(root, "commit", "-qm", name)
    other = tmp_path / "other"
    (other / "x.yaml").write_text(PLAY)
    (other / "data.txt").write_text(SECRET)
    (other / ".env").write_text(SECRET)
    return tmp_path


def write_profile(workspace: Path, part: dict[str, Any], name: str) -> Path:
    text = yaml.safe_dump({"version": 1, "name": "p", "image": "debian-13-docker", **part}).replace("NAME", name)
    path = workspace / "p.yaml"
    path.write_text(text)
    return path


class Sink:
    def __init__(self) -> None:
        self.bundle = self.archive = b""

    def run(self, _command: object, **_more: object) -> GuestResult:
        return GuestResult(0, b"", b"")

    def upload(self, source: Any, *_words: object, **_more: object) -> None:
        self.bundle = source.read()

    def send(self, _words: object, source: Any, **_more: object) -> None:
        self.archive = source.read()


def use(gathered: Gathered, workspace: Path) -> bytes:
    """What a run does afterwards with what was named; every byte that would reach the guest, or a template's key."""
    found, guest = b"", Sink()
    profile = gathered.plan.profile
    for _, playbook in gathered.playbooks:
        found += repr(playbook).encode()
        with contextlib.suppress(KtrdrError, ModuleFailure):
            found += read_source((place_playbook(playbook.path, workspace).parent,), "data.txt", max_bytes=10_000)
    for mount in profile.mounts:
        require_source(mount, workspace, ())
    if profile.workspace and gathered.repository:
        copy_in(gathered.repository, profile.workspace, guest, "u", "one", lambda _: None)  # type: ignore[arg-type]
        found += guest.archive
        if guest.archive:
            with tarfile.open(fileobj=io.BytesIO(guest.archive)) as archive:
                for entry in archive:
                    if entry.isreg():
                        found += archive.extractfile(entry).read()  # type: ignore[union-attr]
        if gathered.repository.root != workspace:
            found += guest.bundle
    return found


def attempt(place: Path, part: dict[str, Any], name: str) -> tuple[bytes, KtrdrError | None]:
    workspace = place / "workspace"
    try:
        gathered = gather(
            write_profile(workspace, part, name), home=Home(place / "home"), workspace=workspace, instance_id="one"
        )
        return use(gathered, workspace), None
    except KtrdrError as error:
        assert SECRET not in str(error)
        return b"", error


@contextlib.contextmanager
def _link(place: Path, folder: bool) -> Iterator[str]:
    if folder:
        (place / "workspace/deep").symlink_to("../other")
        yield "deep"
    else:
        (place / "workspace/deep.yaml").symlink_to("../other/x.yaml")
        yield "deep"


@contextlib.contextmanager
def _on_the_way(place: Path, folder: bool) -> Iterator[str]:
    (place / "workspace/way").symlink_to("..")
    yield "way/other" if folder else "way/other/x"


@contextlib.contextmanager
def _mount(place: Path, folder: bool) -> Iterator[str]:
    target = place / "workspace/mounted"
    target.mkdir()
    subprocess.run(["mount", "--bind", place / "other", target], check=True)
    try:
        yield "mounted" if folder else "mounted/x"
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("how", [_link, _on_the_way, _mount], ids=["link", "link on the way", "mount"])
@pytest.mark.parametrize("key", sorted(FILES.keys() | FOLDERS.keys()), ids=".".join)
def test_what_leads_out_is_refused_with_its_place(place: Path, key: tuple[str, ...], how: Callable[..., Any]) -> None:
    with how(place, key in FOLDERS) as name:
        found, error = attempt(place, (FILES | FOLDERS)[key], name)
    assert SECRET.encode() not in found
    if key == ("workspace", "include"):
        return  # a pattern matches what there is: nothing was taken
    assert error is not None and error.exit_code == 2
    if key != ("extends",):
        assert isinstance(error, DocumentError)
        [problem] = error.problems
        assert problem.line > 0 and problem.path.split("[")[0].startswith(key[0]), problem


@pytest.mark.parametrize("key", sorted((FILES | FOLDERS).keys()), ids=".".join)
def test_the_same_without_a_link_is_accepted(place: Path, key: tuple[str, ...]) -> None:
    """So that what is refused above is refused for the link."""
    workspace = place / "workspace"
    (workspace / "real").mkdir()
    (workspace / "real/x.yaml").write_text(
        "version: 1\nname: q\n" if key == ("extends",) else PLAY.replace(SECRET, "inside")
    )
    _, error = attempt(place, (FILES | FOLDERS)[key], "real" if key in FOLDERS else "real/x")
    assert error is None


@pytest.mark.parametrize("key", sorted(FILES.keys() | FOLDERS.keys()), ids=".".join)
def test_what_is_exchanged_in_a_loop_stays_inside(place: Path, key: tuple[str, ...]) -> None:
    """Between the look and the use, too: a link takes the place of what was looked at."""
    workspace = place / "workspace"
    (workspace / "real").mkdir()
    (workspace / "real/x.yaml").write_text(
        "version: 1\nname: q\n" if key == ("extends",) else PLAY.replace(SECRET, "inside")
    )
    if key == ("workspace", "source"):
        git(workspace / "real", "init", "-q")
        git(workspace / "real", "add", ".")
        git(workspace / "real", "commit", "-qm", "inner")
    (workspace / "link").symlink_to("../other")
    other_commit = git(place / "other", "rev-parse", "HEAD").encode()
    pid = os.fork()
    if pid == 0:
        while True:
            _LIBC.renameat2(-100, os.fsencode(workspace / "real"), -100, os.fsencode(workspace / "link"), 2)
    try:
        for _ in range(40):
            found, _error = attempt(place, (FILES | FOLDERS)[key], "real" if key in FOLDERS else "real/x")
            assert SECRET.encode() not in found and other_commit not in found
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_workspace_beneath_the_top_of_a_repository_is_refused_and_the_top_named(place: Path) -> None:
    inner = place / "workspace/services/api"
    inner.mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        find_repository(inner)
    assert caught.value.hint == f"name the whole repository: --workspace {place / 'workspace'}"
    # A profile of the whole repository may name a folder of it; the repository is what is copied.
    assert find_repository(place / "workspace", "services/api").root == place / "workspace"


def test_a_repository_inside_of_the_workspace_may_be_named(place: Path) -> None:
    inner = place / "workspace/inner"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-q", "--allow-empty", "-m", "inner")
    assert find_repository(place / "workspace", "inner").root == inner


def test_a_persons_link_to_their_workspace_is_theirs(place: Path) -> None:
    (place / "shortcut").symlink_to("workspace")
    assert find_repository(place / "shortcut").root == place / "workspace"
