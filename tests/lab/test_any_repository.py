"""Repositories with features at random are in the guest as on the host, or each difference is named in a note. Real
Git, no VM.

`KTRDR_VM_REPOSITORIES` is how many are made, `KTRDR_VM_SEED` the first seed. A failure names the seed of its
repository.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.profile.model import Workspace
from tests.fakes.guest import FolderGuest

MANY = int(os.environ.get("KTRDR_VM_REPOSITORIES", "80"))
FIRST = int(os.environ.get("KTRDR_VM_SEED", "1"))
NAMES = [
    b"plain", b"with space", b"-dash", b"new\nline", b"tab\there", "ümläut".encode(), b"not-utf8-\xff\xfe", b"quote'\"", b"back\\slash",
    b"$(touch x)", b"#hash", b"glob*[a]?", b":(glob)x", b"a,b;c&d", b"~tilde", b"%s{{ x }}", b".dot", b"HEAD", b"COM1", b"..."
]  # fmt: skip
BRANCHES = ["main", "feat/x", "fix/#42-thing", "user@x", "v1.0", "ü", "a(b)'c", "deep/er/still"]


class Maker:
    """Makes one repository from a seed, by Git's own commands."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.features: list[str] = []

    def git(self, place: Path, *words: str | bytes, check: bool = True) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        settings = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.invalid",
            "-c",
            "protocol.file.allow=always",
            "-c",
            "commit.gpgSign=false",
        ]
        done = subprocess.run(
            ["git", *settings, *words], cwd=place, env=environment, check=False, capture_output=True, timeout=60
        )
        assert done.returncode == 0 or not check, (words, done.stderr)
        return os.fsdecode(done.stdout)

    def happens(self, name: str, likely: float) -> bool:
        if self.chance.random() >= likely:
            return False
        self.features.append(name)
        return True

    def path(self, place: Path) -> Path:
        """A path that is free, perhaps in folders, with names of any bytes."""
        while True:
            parts = [os.fsdecode(self.chance.choice(NAMES)) for _ in range(self.chance.randint(1, 3))]
            made = place.joinpath(*parts[:-1], f"{parts[-1]}{self.chance.randint(0, 99)}")
            if not any(
                os.path.lexists(one) and (one.is_symlink() or not one.is_dir()) for one in made.parents
            ) and not os.path.lexists(made):
                made.parent.mkdir(parents=True, exist_ok=True)
                return made

    def write(self, place: Path) -> Path:
        made = self.path(place)
        if self.chance.random() < 0.2:
            made.symlink_to(self.chance.choice(["plain1", "/nowhere/at/all", "..", "../../outside", "no such"]))
            return made
        made.write_bytes(
            self.chance.choice([b"", b"text\n", b"a\r\nb\r\n", bytes(range(256)), b"no line end", os.urandom(2000)])
        )
        made.chmod(self.chance.choice([0o644, 0o755, 0o600, 0o700]))
        return made

    def commit(self, place: Path) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.write(place)
        self.git(place, "add", "-A", "-f")
        self.git(place, "commit", "-q", "--allow-empty", "-m", "x")

    def make_bare_history(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True)
        self.git(place, "init", "-q", "-b", "main", *(["--object-format=sha256"] if self.sha256 else []))
        for number in range(self.chance.randint(1, 4)):
            self.commit(place)
            if self.happens("tag", 0.3):
                self.git(place, "tag", *(["-a", "-m", "t"] if self.chance.random() < 0.5 else []), f"t{number}")
        return place

    def add_submodules(self, place: Path, depth: int) -> None:
        for number in range(self.chance.randint(1, 2)):
            inner = self.make_bare_history(f"lib-{depth}-{number}-{self.chance.randint(0, 10**9)}")
            if depth < 2 and self.happens("submodule in a submodule", 0.4):
                self.add_submodules(inner, depth + 1)
            self.git(place, "submodule", "add", "-q", str(inner), f"vendor/{depth}{number}")
        self.git(place, "commit", "-q", "-m", "submodules")

    def make(self) -> Path:
        self.sha256 = self.happens("sha256", 0.1)
        place = self.make_bare_history("origin")
        if self.happens("submodules", 0.3):
            self.add_submodules(place, 0)
        if self.happens("lfs", 0.2):
            (place / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
            (place / "large.bin").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 9\n"
            )
            self.git(place, "add", ".gitattributes", "large.bin")
            self.git(place, "commit", "-q", "-m", "lfs")
        if self.happens("ignored", 0.4):
            (place / ".gitignore").write_text("*.env\n/local/\n")
            self.git(place, "add", ".gitignore")
            self.git(place, "commit", "-q", "-m", "ignore")
        branch = self.chance.choice(BRANCHES)
        if branch != "main":
            self.features.append(f"branch {branch}")
            self.git(place, "checkout", "-q", "-b", branch)
            self.commit(place)
            if branch == "v1.0" and self.chance.random() < 0.5:
                self.git(place, "tag", "v1.0", "HEAD~1")
        return self.copy(place, branch)

    def copy(self, origin: Path, branch: str) -> Path:
        """The repository of the person: the first one, a clone of a kind, or a linked worktree."""
        kind = self.chance.choice(["itself", "itself", "clone", "shallow", "partial", "worktree", "sparse", "detached"])
        self.features.append(kind)
        place = self.folder / "home"
        self.git(origin, "config", "uploadpack.allowFilter", "true")
        self.git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
        if kind == "worktree":
            self.git(origin, "worktree", "add", "-q", "-b", "linked", str(place))
            self.git(place, "submodule", "update", "-q", "--init", "--recursive")
            return place
        if kind in ("clone", "shallow", "partial", "sparse"):
            options = {
                "shallow": ["--depth=1"],
                "partial": [f"--filter={self.chance.choice(['blob:none', 'tree:0'])}"],
            }.get(kind, [])
            self.git(self.folder, "clone", "-q", *options, "-b", branch, f"file://{origin}", str(place))
            if kind == "sparse":
                self.git(
                    place,
                    "sparse-checkout",
                    "set",
                    *(["--no-cone"] if self.chance.random() < 0.5 else []),
                    "plain",
                    "vendor",
                    ".dot",
                )
            self.git(
                place,
                "submodule",
                "update",
                "-q",
                "--init",
                *(["--recursive"] if self.chance.random() < 0.8 else []),
                check=False,
            )
            return place
        origin.rename(place)
        for pointer in place.rglob(".git"):
            assert not pointer.is_file() or (pointer.parent / pointer.read_text().split()[1]).exists()
        if kind == "detached":
            self.git(place, "checkout", "-q", "--detach")
        self.git(place, "submodule", "update", "-q", "--init", "--recursive")
        if self.happens("packed", 0.3):
            self.git(place, "gc", "-q")
        return place

    def change(self, place: Path) -> None:
        """What the person did and did not commit."""
        tracked = [
            os.fsencode(place) + b"/" + os.fsencode(name)
            for name in self.git(place, "ls-files", "-z").split("\0")
            if name
        ]
        there = [Path(os.fsdecode(name)) for name in tracked if os.path.isfile(name) or os.path.islink(name)]
        changes: list[tuple[str, Callable[[Path], object]]] = [
            ("modified", lambda path: replace(path, lambda: path.write_bytes(b"changed\n"))),
            ("deleted", lambda path: path.unlink()),
            ("mode", flip_mode),
            ("to a link", lambda path: replace(path, lambda: path.symlink_to("elsewhere"))),
            ("to a folder", lambda path: replace(path, lambda: make_folder(path))),
            ("renamed", lambda path: path.rename(self.path(place))),
            ("assumed unchanged", lambda path: self.assume(place, path)),
        ]
        for what, act in changes:
            if there and self.happens(what, 0.3):
                act(there.pop(self.chance.randrange(len(there))))
        if self.happens("untracked", 0.5):
            self.write(place)
        if self.happens("an ignored file", 0.3):
            (place / "x.env").write_text("PORT=1\n")
        if self.happens("a repository in it", 0.2):
            inner = place / "tools/inner"
            inner.mkdir(parents=True)
            self.git(inner, "init", "-q")
            self.commit(inner)
        if self.happens("staged", 0.3):
            self.git(place, "add", "-A", "--", ".", ":(exclude)tools", check=False)

    def assume(self, place: Path, path: Path) -> None:
        self.git(place, "update-index", "--assume-unchanged", "--", os.fsencode(path.relative_to(place)))
        if not path.is_symlink():
            path.write_bytes(b"the person's own\n")


def replace(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


def flip_mode(path: Path) -> None:
    if not path.is_symlink():
        path.chmod(path.stat().st_mode ^ 0o111)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inner").write_text("x")


def describe(top: Path) -> dict[str, tuple[str, bytes, bool]]:
    """Each file and link: its kind, its content, whether it can be executed. Git's folders and the notes' are none."""
    found = {}
    for folder, names, files in os.walk(os.fsencode(top)):
        for name in [*names, *files]:
            path = folder + b"/" + name
            facts = os.lstat(path)
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(top)))
            if stat.S_ISLNK(facts.st_mode):
                found[shown] = ("link", os.readlink(path), False)
            elif stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    found[shown] = ("file", file.read(), bool(facts.st_mode & 0o100))
        names[:] = [name for name in names if name not in (b".git", b".ktrdr")]
    return {name: value for name, value in found.items() if ".git" not in Path(name).parts}


def list_open(maker: Maker, place: Path) -> set[str]:
    """Paths that differ from HEAD or are untracked and not ignored: what `git status` says, whatever is staged."""
    differing = maker.git(
        place, "diff", "--name-only", "--no-renames", "--ignore-submodules=all", "-z", "HEAD", "--"
    ).split("\0")
    return {
        name
        for name in (*differing, *maker.git(place, "ls-files", "--others", "--exclude-standard", "-z").split("\0"))
        if name
    }


def is_named(path: str, notes: list[str]) -> bool:
    """True if a note names the path or a folder above it."""
    return any(
        note.startswith((f"{one}", f"the submodule {one} "))
        for note in notes
        for one in {path, *map(str, Path(path).parents)} - {"."}
    )


@pytest.mark.parametrize("block", range(4))
def test_the_guest_has_what_the_host_has_or_a_note_says_what_not(
    tmp_path: Path, block: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made, seen = 0, set[str]()
    for seed in range(FIRST + block, FIRST + MANY, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check(seed, folder, seen)
        made += 1
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{made} repositories, {len(seen)} features")


def check(seed: int, folder: Path, seen: set[str]) -> None:
    maker = Maker(seed, folder)
    place = maker.make()
    maker.change(place)
    seen.update(maker.features)
    before, wanted = list_open(maker, place), describe(place)
    notes: list[str] = []
    guest = folder / "guest"
    copy_in(find_repository(place), Workspace(include=("**",)), FolderGuest(guest), "root", "a", notes.append)
    about = f"seed {seed}: {maker.features}; notes {notes}"
    there = describe(guest)
    sparse = any("sparse" in note for note in notes)
    unlike = {name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)}
    left = {name for name in unlike if not is_named(name, notes) and not (sparse and name not in wanted)}
    assert not left, f"{about}: {sorted(left)[:5]}"
    assert maker.git(guest, "rev-parse", "--verify", "HEAD") == maker.git(place, "rev-parse", "--verify", "HEAD"), about
    branch = maker.git(place, "branch", "--show-current").strip() or "detached"
    assert maker.git(guest, "branch", "--show-current").strip() == branch, about
    whole = not any("no earlier history" in note for note in notes)
    for words in (("tag", "--merged", "HEAD"), ("rev-list", "--count", "HEAD", "--")) if whole else ():
        assert maker.git(guest, *words) == maker.git(place, *words), about
    assert not {
        name for name in before ^ list_open(maker, guest) if not is_named(name.rstrip("/"), notes) and not sparse
    }, about
    assert re.fullmatch(r"", maker.git(guest, "fsck", "--no-dangling", "--no-progress").strip()), about
