"""Whose rights count: files that their owner may not read, places that others may change, cores, and a person's own
files by every way."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory.interrupts import interrupt_often
from laboratory.person import open_above

from ktrdr_vm import api
from ktrdr_vm.cli import main as main_module
from ktrdr_vm.errors import HostError
from ktrdr_vm.gates.modules.base import ModuleFailure
from ktrdr_vm.gates.modules.sources import list_source, read_source
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.owner import reading_as
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.instance.resources.mount import _open_source, _refuse_repositories
from ktrdr_vm.policy import load as owner_policy
from ktrdr_vm.policy.owner_policy import refuse_path
from ktrdr_vm.profile.model import Mount, Workspace
from ktrdr_vm.profile.personal import _PERSONAL
from ktrdr_vm.users import find_changeable

SECRET = b"what its owner may not read"
PERSON = (12345, 12345)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Where another user may pass through; pytest closes its own folder whenever a session begins."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-lab-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Sink:
    def __init__(self) -> None:
        self.archive = b""

    def run(self, _command: object, **_more: object) -> GuestResult:
        return GuestResult(0, b"", b"")

    def upload(self, source: Any, *_words: object, **_more: object) -> None:
        source.read()

    def send(self, _words: object, source: Any, **_more: object) -> None:
        self.archive = source.read()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's repository, in which root has left a file and a folder."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "tracked").write_text("1\n")
    (root / "own.env").write_text("own\n")
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "tracked"], ["commit", "-qm", "base"]):
        subprocess.run(["git", *settings, *words], cwd=root, check=True, capture_output=True)
    subprocess.run(["chown", "-R", "12345:12345", root], check=True)
    open_above(tmp_path / "any", 0o055)
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12345")
    for name, mode in (("closed.env", 0o600), ("by-group.env", 0o640), ("tracked", 0o600)):
        (root / name).write_bytes(SECRET)
        (root / name).chmod(mode)
        os.chown(root / name, 0, 0)
    (root / "closed").mkdir(mode=0o700)
    (root / "closed/in.env").write_bytes(SECRET)
    return root


def copy(root: Path) -> tuple[bytes, list[str]]:
    guest = Sink()
    notes: list[str] = []
    copy_in(find_repository(root), Workspace(include=("**",)), guest, "u", "one", notes.append)  # type: ignore[arg-type]
    return guest.archive, notes


def test_the_workspace_is_read_with_its_owners_rights(workspace: Path) -> None:
    try:
        archive, notes = copy(workspace)
    except Exception as error:  # Git itself may not read it either
        assert "tracked" in str(error)
        os.chown(workspace / "tracked", *PERSON)
        archive, notes = copy(workspace)
    assert b"own.env" in archive
    assert archive.count(SECRET) == (1 if (workspace / "tracked").stat().st_uid else 0)
    assert any("closed.env" in note for note in notes)


@pytest.mark.parametrize("name", ["closed.env", "by-group.env", "closed/in.env"])
def test_a_playbook_sends_what_the_person_may_read(workspace: Path, name: str) -> None:
    with pytest.raises(ModuleFailure):
        read_source((Place(workspace),), name, max_bytes=1000)
    with pytest.raises(ModuleFailure):
        list_source((Place(workspace),), "closed")
    assert read_source((Place(workspace),), "own.env", max_bytes=1000) == b"own\n"


def test_the_threads_rights_come_back(workspace: Path) -> None:
    with pytest.raises(PermissionError), reading_as(PERSON):
        (workspace / "closed.env").read_bytes()
    assert (workspace / "closed.env").read_bytes() == SECRET


def test_the_groups_of_root_open_nothing_for_the_person(workspace: Path) -> None:
    """As after sudo, where root is a member of its group: a link to /etc/sudoers, of mode 0440, led to its text."""
    path, groups = workspace / "of-root's-group", os.getgroups()
    path.write_bytes(SECRET)
    path.chmod(0o060)
    os.chown(path, 0, 0)
    os.setgroups([0])
    try:
        with reading_as(PERSON):
            for flags in (os.O_RDONLY, os.O_WRONLY):
                with pytest.raises(PermissionError):
                    os.open(path, flags)
        assert os.getgroups() == [0] and path.read_bytes() == SECRET
    finally:
        os.setgroups(groups)


def test_the_threads_rights_come_back_after_any_interrupt(workspace: Path) -> None:
    """Else a removal would find that it may not open root's own files."""

    def read() -> None:
        with reading_as(PERSON):
            [os.access(workspace, os.R_OK) for _ in range(100)]

    def check() -> None:
        assert Path("/proc/thread-self/status").read_text().partition("Uid:")[2].split()[3] == str(os.geteuid())

    read()
    assert interrupt_often(read, check, longest=9e-4, seconds=4) > 100


# -- a person's own places, by every way ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_PERSONAL))
def test_a_persons_own_place_goes_in_by_no_way(tmp_path: Path, workspace: Path, name: str) -> None:
    place = workspace / "home" / name
    place.mkdir(parents=True)
    (place / "key").write_bytes(SECRET)
    subprocess.run(["chown", "-R", "12345:12345", workspace / "home"], check=True)
    os.chown(workspace / "tracked", *PERSON)
    (workspace / "tracked").write_text("1\n")
    archive, notes = copy(workspace)
    assert f"home/{name}/key".encode() not in archive and any(name in note for note in notes)
    for roots, source in (((Place(workspace),), f"home/{name}/key"), ((Place(workspace / "home"),), f"{name}/key")):
        with pytest.raises(ModuleFailure, match="personal folder or file"):
            read_source(roots, source, max_bytes=1000)
    with pytest.raises(ModuleFailure, match="personal folder or file"):
        list_source((Place(workspace),), "home")
    assert "personal folder or file" in refuse_path(f"home/{name}", str(workspace), ())


@pytest.mark.parametrize("name", [".ssh", ".AWS", ".gnupg", "keyrings", ".netrc", ".git-credentials"])
def test_a_root_above_a_persons_own_place_is_not_mounted(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep" / name).mkdir(parents=True)
    with _open_source(Place(tmp_path)) as folder, pytest.raises(HostError, match="own place"):
        _refuse_repositories(folder, Mount(str(tmp_path), "/data").source)


# -- places that others may change ------------------------------------------------------------------------------------


@pytest.mark.host_root
@pytest.mark.parametrize("part", ["policy.yaml", "etc", "above"])
@pytest.mark.parametrize("how", ["owner", "group", "others"])
def test_a_policy_that_others_could_write_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, how: str
) -> None:
    path = tmp_path / "above" / "etc" / "policy.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("instances: {max: 3}\n")
    monkeypatch.setattr(owner_policy, "POLICY_PATH", str(path))
    assert owner_policy.read_policy().most_instances == 3
    target = next(one for one in (path, *path.parents) if one.name == part)
    if how == "owner":
        os.chown(target, *PERSON)
    else:
        target.chmod(target.stat().st_mode | (0o020 if how == "group" else 0o002))
    with pytest.raises(HostError, match=r"other users (can|could)"):
        owner_policy.read_policy()
    if part != "policy.yaml":
        path.unlink()
        with pytest.raises(HostError, match=r"other users (can|could)"):
            owner_policy.read_policy()


@pytest.mark.parametrize("how", ["owner", "group", "others"])
def test_a_state_directory_that_others_may_change_is_not_used(tmp_path: Path, how: str) -> None:
    root = tmp_path / "above" / "home"
    root.mkdir(parents=True)
    Home(root).create()
    if how == "owner":
        os.chown(root.parent, *PERSON)
    else:
        root.parent.chmod(0o775 if how == "group" else 0o757)
    with pytest.raises(HostError, match="other users can change"):
        Home(root).create()


def test_a_folder_for_everybody_is_fine_on_the_way_and_nowhere_else(tmp_path: Path) -> None:
    assert find_changeable(tmp_path / "new") == "" and find_changeable(Path("/tmp")) == "/tmp"


# -- memory on the disk -----------------------------------------------------------------------------------------------


ENTRIES = [
    "from ktrdr_vm.cli.main import main; sys.argv[1:] = ['--version']; main()",
    "from ktrdr_vm.cli.entry import main; sys.argv[1:] = ['proxy', 'none']; main()",
    "from ktrdr_vm import apply; apply('none.yaml')",
    "from ktrdr_vm import Instance; Instance('none.yaml')",
    "from ktrdr_vm.api import LivingInstance; LivingInstance('none')",
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_point_writes_a_core(tmp_path: Path, entry: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    line = f"import resource, sys\ntry:\n    {entry.replace('; ', chr(10) + '    ')}\nexcept BaseException: pass\nprint(resource.getrlimit(resource.RLIMIT_CORE))"
    words = [
        "bash",
        "-c",
        'ulimit -c "$1" 2>/dev/null; exec "$2" -c "$3"',
        "x",
        "1000" if hard else "0",
        sys.executable,
        line,
    ]
    environment = {**os.environ, "KTRDR_VM_HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "(0, 0)" and soft is not None


def test_every_entry_point_is_tried_above() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    assert text.count("ktrdr_vm.cli.entry:main") == 1 and main_module.main is not None
    assert {name for name in vars(api) if name in ("apply", "Instance", "LivingInstance")} == {
        "apply",
        "Instance",
        "LivingInstance",
    }
