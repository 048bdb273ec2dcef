"""A repository's own configuration runs nothing on the host, whatever it says, and none of another repository comes
along."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.guest.commits import pull_commits
from ktrdr_vm.guest.protocol import GuestRefusedError, GuestResult
from ktrdr_vm.guest.workspace import copy_in, require_clean
from ktrdr_vm.host.git import open_view
from ktrdr_vm.host.repository import find_repository, resolve_commit
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.profile.model import Workspace

IDENTITY = parse_instance_id("stream-a")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Where another user may pass through; pytest closes its own folder whenever a session begins."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-lab-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def git(where: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "file:ext",
    }
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *settings, *words], cwd=where, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


class Sink:
    """A guest that takes everything and keeps the bundle of the workspace, and the archive of what is not committed."""

    def __init__(self) -> None:
        self.bundle = self.archive = b""

    def run(self, _command: object, **_more: object) -> GuestResult:
        return GuestResult(0, b"", b"")

    def upload(self, source: object, *_words: object, **_more: object) -> None:
        self.bundle = source.read()  # type: ignore[attr-defined]

    def send(self, _words: object, source: object, **_more: object) -> None:
        self.archive = source.read()  # type: ignore[attr-defined]


class Returning(Sink):
    """A guest with commits of its own."""

    def __init__(self, made: Path) -> None:
        super().__init__()
        self.made = made

    def run(self, _command: object, **_more: object) -> GuestResult:
        return GuestResult(0, b"work\n0\n0\n0\n" + (b"made\n" if self.made.exists() else b""), b"")

    def download(self, _path: str, sink: object, **_more: object) -> int:
        if not self.made.exists():
            raise GuestRefusedError("none", hint="x")
        return int(sink.write(self.made.read_bytes()))  # type: ignore[attr-defined]


def make_repository(place: Path) -> Path:
    place.mkdir(parents=True)
    git(place, "init", "-q")
    (place / "a.txt").write_text("one\n")
    (place / ".gitattributes").write_text("* filter=x diff=x merge=x\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "base")
    return place


def make_guest_bundle(repository: Path, to: Path) -> Path:
    clone = to / "clone"
    git(to, "clone", "-q", str(repository), str(clone))
    git(clone, "checkout", "-qb", "work")
    (clone / "b.txt").write_text("two\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "work")
    git(clone, "bundle", "create", "-q", str(to / "made.bundle"), "work", "^main")
    return to / "made.bundle"


def use_all(repository: Path, bundle: Path) -> None:
    """Every operation of this program on a repository. What fails is no matter here; what runs is."""
    guest = Sink()
    note: list[str] = []
    found = find_repository(repository)
    workspace = Workspace(include=("**",))
    for act in (
        lambda: require_clean(found, Workspace(uncommitted="refuse")),
        lambda: _copy(found, workspace, guest, note.append),
        lambda: pull_commits(found, found.commit, "/w", Returning(bundle), IDENTITY),  # type: ignore[arg-type]
        lambda: resolve_commit(found, found.commit),
        lambda: _log(found),
    ):
        with contextlib.suppress(KtrdrError):
            act()


def _copy(found: object, workspace: Workspace, guest: Sink, note: Callable[[str], None]) -> None:
    copy_in(found, workspace, guest, "u", "stream-a", note)  # type: ignore[arg-type]


def _log(found: object) -> None:
    with open_view(found.place) as view:  # type: ignore[attr-defined]
        view.git("log", "--format=%H %s", "HEAD", "--")
        view.git("format-patch", "--stdout", "-1", "HEAD")
        view.git("diff", "--quiet", "HEAD", "--", check=False)
        view.git("ls-files", "--error-unmatch", "--", "a.txt")


def list_keys() -> list[str]:
    """Every key that this host's Git knows, each placeholder as something that a repository could have."""
    listed = subprocess.run(["git", "help", "--config"], capture_output=True, text=True, check=True).stdout.split()
    keys = set()
    for key in [
        *listed,
        "include.path",
        "includeIf.gitdir:/**.path",
        "core.sshCommand",
        "filter.x.process",
        "uploadpack.packObjectsHook",
    ]:
        name = re.sub(r"<[^>]*>|\*", "x", key)
        if "." not in name.strip(".") or name.endswith("."):
            continue
        keys.add(name)
    return sorted(keys)


# What decides how the repository is laid out: with a program's path as its value Git itself refuses the repository.
_LAYOUT = {"core.repositoryformatversion", "core.bare", "core.worktree"}


def test_no_key_of_a_configuration_runs_a_program(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    bundle = make_guest_bundle(repository, tmp_path)
    mark, program = tmp_path / "mark", tmp_path / "program"
    mark.mkdir(mode=0o777)
    mark.chmod(0o777)
    program.write_text(f"#!/bin/sh\n: > {mark}/ran-$$\ncat\n")
    program.chmod(0o755)
    included = tmp_path / "included"
    included.write_text(
        f'[filter "x"]\n\tclean = {program}\n\tsmudge = {program}\n\trequired = true\n[core]\n\tfsmonitor = {program}\n'
    )
    (repository / ".git/hooks").mkdir(exist_ok=True)
    hooks = [path.stem for path in (repository / ".git/hooks").glob("*.sample")] + [
        "post-index-change",
        "reference-transaction",
    ]
    for hook in hooks:
        (repository / ".git/hooks" / hook).write_text(program.read_text())
        (repository / ".git/hooks" / hook).chmod(0o755)
    original = (repository / ".git/config").read_text()
    keys = list_keys()
    assert len(keys) > 300 and {"core.fsmonitor", "filter.x.clean", "diff.x.textconv", "core.sshcommand"} <= {
        key.lower() for key in keys
    }

    def write(some: list[str]) -> None:
        (repository / ".git/config").write_text(original)
        for key in some:
            if key.lower() in _LAYOUT or key.lower().startswith("extensions."):
                continue
            value = str(included) if key.lower().startswith("include") else str(program)
            subprocess.run(
                ["git", "config", "--file", repository / ".git/config", key, value], check=False, capture_output=True
            )
        (repository / "a.txt").write_text(f"changed {len(some)}\n")  # so that the index does not know it

    def ran() -> list[str]:
        return sorted(path.name for path in mark.iterdir())

    # The mark works: Git itself runs the filter.
    write(["filter.x.clean"])
    git(repository, "diff", "HEAD")
    assert ran()
    for path in mark.iterdir():
        path.unlink()
    for start in range(0, len(keys), 40):
        write(keys[start : start + 40])
        use_all(repository, bundle)
        assert ran() == [], keys[start : start + 40]
    for key in (
        "filter.x.clean",
        "filter.x.process",
        "core.fsmonitor",
        "include.path",
        "core.hooksPath",
        "alias.diff",
        "diff.external",
    ):
        write([key])
        use_all(repository, bundle)
        assert ran() == [], key


def test_a_promised_object_is_fetched_by_nobody(tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin")
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--no-local", "--filter=blob:none", f"file://{origin}", "partial")
    partial = tmp_path / "partial"
    (origin / "a.txt").write_text("newer\n")
    git(origin, "commit", "-qam", "newer")
    git(partial, "fetch", "-q")
    git(partial, "update-ref", "refs/heads/main", "refs/remotes/origin/main")
    mark = tmp_path / "mark"
    (tmp_path / "pack").write_text(f'#!/bin/sh\n: > {mark}\nexec git-upload-pack "$@"\n')
    (tmp_path / "pack").chmod(0o755)
    git(partial, "config", "remote.origin.uploadpack", str(tmp_path / "pack"))
    before = sorted(str(path) for path in (partial / ".git/objects").rglob("*"))
    found = find_repository(partial)
    with pytest.raises(KtrdrError):
        _copy(found, Workspace(), Sink(), lambda _: None)
    assert not mark.exists()
    assert sorted(str(path) for path in (partial / ".git/objects").rglob("*")) == before


# -- what has to go on working ----------------------------------------------------------------------------------------


def _plain(place: Path) -> Path:
    return make_repository(place / "plain")


def _worktree(place: Path) -> Path:
    main = make_repository(place / "main")
    git(main, "worktree", "add", "-q", "-b", "side", str(place / "linked"))
    return place / "linked"


def _shallow(place: Path) -> Path:
    main = make_repository(place / "deep")
    git(main, "commit", "-q", "--allow-empty", "-m", "second")
    git(place, "clone", "-q", "--depth=1", f"file://{main}", "shallow")
    return place / "shallow"


def _packed(place: Path) -> Path:
    main = make_repository(place / "packed")
    git(main, "pack-refs", "--all")
    git(main, "gc", "-q")
    return main


def _sha256(place: Path) -> Path:
    main = place / "sha256"
    main.mkdir(parents=True)
    git(main, "init", "-q", "--object-format=sha256")
    (main / "a.txt").write_text("one\n")
    git(main, "add", ".")
    git(main, "commit", "-qm", "base")
    return main


def _worktree_config(place: Path) -> Path:
    main = make_repository(place / "extended")
    git(main, "config", "core.repositoryFormatVersion", "1")
    git(main, "config", "extensions.worktreeConfig", "true")
    git(main, "config", "extensions.preciousObjects", "true")
    return main


def _submodule(place: Path) -> Path:
    inner, outer = make_repository(place / "inner"), make_repository(place / "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    return outer / "sub"


def _split_index(place: Path) -> Path:
    main = make_repository(place / "split")
    git(main, "update-index", "--split-index")
    return main


def _sparse(place: Path) -> Path:
    main = make_repository(place / "sparse")
    (main / "in").mkdir()
    (main / "in/x").write_text("x")
    (main / "out").mkdir()
    (main / "out/y").write_text("y")
    git(main, "add", ".")
    git(main, "commit", "-qm", "two folders")
    git(main, "sparse-checkout", "set", "in")
    assert not (main / "out/y").exists()
    return main


def _detached(place: Path) -> Path:
    main = make_repository(place / "detached")
    git(main, "checkout", "-q", "--detach")
    return main


@pytest.mark.parametrize(
    "make",
    [_plain, _worktree, _shallow, _packed, _sha256, _worktree_config, _submodule, _split_index, _sparse, _detached],
)
@pytest.mark.parametrize("owner", [0, 12345])
def test_repositories_of_every_shape_go_in_and_commits_come_back(
    tmp_path: Path, make: Callable[[Path], Path], owner: int
) -> None:
    tmp_path.chmod(0o755)
    repository = make(tmp_path / "r")
    made = tmp_path / "from-guest"
    made.mkdir()
    clone = made / "clone"
    git(made, "clone", "-q", f"file://{repository}", str(clone))
    if owner:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(folder.stat().st_mode | 0o005)
        subprocess.run(["chown", "-R", f"{owner}:{owner}", tmp_path / "r"], check=True)
    found = find_repository(repository)
    assert (
        found.commit
        == subprocess.run(
            ["git", "-c", "safe.directory=*", "rev-parse", "HEAD"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    require_clean(found, Workspace(uncommitted="refuse"))
    (repository / "a.txt").write_text("changed\n")
    (repository / "new.env").write_text("x\n")
    os.chown(repository / "new.env", owner, owner)
    guest = Sink()
    _copy(found, Workspace(include=("*.env",)), guest, lambda _: None)
    assert found.commit.encode() in guest.bundle and b"new.env" in guest.archive and b"a.txt" in guest.archive
    assert b"out/y" not in guest.archive
    git(clone, "checkout", "-qb", "work", found.commit)
    (clone / "b.txt").write_text("two\n")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "work")
    git(clone, "bundle", "create", "-q", str(made / "made.bundle"), "work", f"^{found.commit}")
    came = pull_commits(found, found.commit, "/w", Returning(made / "made.bundle"), IDENTITY)  # type: ignore[arg-type]
    assert [(one.ref, one.changed) for one in came.refs] == [("refs/ktrdr/stream-a/work", ("b.txt",))]
    show = ["git", "-c", "safe.directory=*", "show", "refs/ktrdr/stream-a/work:b.txt"]
    assert subprocess.run(show, cwd=repository, capture_output=True, text=True, check=True).stdout == "two\n"
    assert {path.stat().st_uid for path in (tmp_path / "r").rglob("*") if not path.is_symlink()} == {owner}
    assert resolve_commit(found, "refs/ktrdr/stream-a/work") == came.refs[0].commit


# -- none of another repository ---------------------------------------------------------------------------------------


def _link(workspace: Path, other: Path) -> None:
    (workspace / ".git").symlink_to(other / ".git")


def _pointer(workspace: Path, other: Path) -> None:
    (workspace / ".git").write_text(f"gitdir: {other / '.git'}\n")


def _evil_worktree(workspace: Path, other: Path) -> None:
    evil = workspace / "x/worktrees/evil"
    evil.mkdir(parents=True)
    (evil / "gitdir").write_text(f"{workspace}/.git\n")
    (evil / "commondir").write_text(f"{other}/.git\n")
    (evil / "HEAD").write_text("ref: refs/heads/main\n")
    (workspace / ".git").write_text(f"gitdir: {evil}\n")


def _linked_part(name: str) -> Callable[[Path, Path], None]:
    def make(workspace: Path, other: Path) -> None:
        git(workspace, "init", "-q")
        path = workspace / ".git" / name
        subprocess.run(["rm", "-rf", path], check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(other / ".git" / name)
        if name.startswith("refs"):
            (workspace / ".git/objects/info").mkdir(exist_ok=True)
            (workspace / ".git/objects/info/alternates").write_text(f"{other}/.git/objects\n")

    return make


def _alternates(workspace: Path, other: Path) -> None:
    git(workspace, "init", "-q")
    (workspace / ".git/objects/info/alternates").write_text(f"{other}/.git/objects\n")
    (workspace / ".git/refs/heads/main").write_text(git(other, "rev-parse", "HEAD") + "\n")


def _quoted(workspace: Path, other: Path) -> None:
    """As Git reads it, without the quotes."""
    _alternates(workspace, other)
    (workspace / ".git/objects/info/alternates").write_text(f'"{other}/.git/objects"\n')


def _linked_alternates(workspace: Path, other: Path) -> None:
    """Objects in the workspace, all of which are links."""
    _alternates(workspace, other)
    (workspace / "o").mkdir()
    for one in (other / ".git/objects").iterdir():
        if one.name != "info":
            (workspace / "o" / one.name).symlink_to(one)
    (workspace / ".git/objects/info/alternates").write_text(f"{workspace}/o\n")


def _foreign_pack(workspace: Path, other: Path) -> None:
    """An index of several packs that names one of the other repository."""
    git(other, "gc", "-q")
    git(other, "multi-pack-index", "write")
    [pack] = (other / ".git/objects/pack").glob("*.idx")
    made = (other / ".git/objects/pack/multi-pack-index").read_bytes()
    table = [
        (made[at : at + 4], int.from_bytes(made[at + 4 : at + 12])) for at in range(12, 12 + 12 * (made[6] + 1), 12)
    ]
    parts = {name: made[begin:end] for (name, begin), (_, end) in itertools.pairwise(table)}
    _alternates(workspace, other)
    (workspace / ".git/objects/info/alternates").unlink()
    folder = workspace / ".git/objects/pack"
    path = os.fsencode(os.path.relpath(pack, folder)) + b"\0"
    parts[b"PNAM"] = path + b"\0" * (-len(path) % 4)
    content, begin = made[:12], 12 + 12 * len(table)
    for name, part in parts.items():
        content, begin = content + name + begin.to_bytes(8), begin + len(part)
    content += bytes(4) + begin.to_bytes(8) + b"".join(parts.values())
    (folder / "multi-pack-index").write_bytes(content + hashlib.sha1(content).digest())


@pytest.mark.parametrize(
    "make",
    [
        _link,
        _foreign_pack,
        _quoted,
        _linked_alternates,
        _pointer,
        _evil_worktree,
        _alternates,
        *(_linked_part(n) for n in ("objects", "refs", "refs/heads", "refs/heads/main", "HEAD")),
    ],
)
def test_a_git_folder_that_leads_elsewhere_brings_nothing(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    other = make_repository(tmp_path / "other")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    make(workspace, other)
    with pytest.raises(UsageError):
        found = find_repository(workspace)
        _copy(found, Workspace(include=("**",)), Sink(), lambda _: None)


def test_a_guest_s_commit_that_git_refuses_makes_no_ref(tmp_path: Path) -> None:
    """Git's own checks, which `fetch.fsckObjects` does not apply to a bundle in every version."""
    repository = make_repository(tmp_path / "repository")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), "clone")
    git(clone, "checkout", "-qb", "work")
    (clone / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "an option as an url")
    git(clone, "bundle", "create", "-q", str(tmp_path / "made.bundle"), "work", "^main")
    found = find_repository(repository)
    with pytest.raises(KtrdrError, match="refused"):
        pull_commits(found, found.commit, "/w", Returning(tmp_path / "made.bundle"), IDENTITY)  # type: ignore[arg-type]
    assert git(repository, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert len(list((repository / ".git/objects/pack").glob("*"))) == 0


def test_root_s_own_repository_is_read_by_somebody_who_can_change_nothing(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    (repository / ".git").chmod(0o700)
    found = find_repository(repository)
    with open_view(found.place) as view:
        ran = view.git(
            "-c", f"alias.who=!id -u; cat /etc/shadow | head -c 1; : > {repository}/made", "who", check=False
        )
        assert ran.text.startswith("65534\n") and "Permission denied" in ran.error_text
        assert not (repository / "made").exists()
        assert view.git("rev-parse", "HEAD").text.strip() == found.commit


@pytest.mark.parametrize("file", ["config", "config.worktree"])
def test_a_tree_that_is_elsewhere_is_refused_with_its_place(tmp_path: Path, file: str) -> None:
    repository, other = make_repository(tmp_path / "r"), tmp_path / "other"
    other.mkdir()
    if file == "config.worktree":
        git(repository, "config", "extensions.worktreeConfig", "true")
    git(repository, "config", "--file", f".git/{file}", "core.worktree", "../../other")
    with pytest.raises(UsageError, match=rf"another folder, {other} \(core.worktree\)") as caught:
        find_repository(repository)
    assert caught.value.where == str(repository)
    git(repository, "config", "--file", f".git/{file}", "core.worktree", "..")
    assert find_repository(repository).branch == "main"


def test_a_linked_tree_does_not_have_the_tree_of_the_main_repository(tmp_path: Path) -> None:
    linked, other = _worktree(tmp_path), tmp_path / "other"
    other.mkdir()
    git(tmp_path / "main", "config", "core.worktree", str(other))
    assert find_repository(linked).branch == "side"
