"""What of a person's repository is there in the guest: tags, the default branch, submodules, what replaced a folder.
Real Git, no VM."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from laboratory.person import open_above
from test_commits import git

from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.commits import pull_commits
from ktrdr_vm.guest.loose_names import list_beneath
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Workspace
from tests.fakes.guest import FolderGuest

IDENTITY = parse_instance_id("stream-a")


def enter(repository: Path, tmp_path: Path, **workspace: Any) -> tuple[Path, list[str]]:
    """The guest's folder, and the notes."""
    guest, notes = tmp_path / "guest", list[str]()
    found = find_repository(repository, workspace.get("source", "."))
    copy_in(found, Workspace(**workspace), FolderGuest(guest), "root", "stream-a", notes.append)
    return guest, notes


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    commit(place, "a.txt", "one")
    return place


def commit(place: Path, name: str, text: str) -> str:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
    git(place, "add", "-A")
    git(place, "commit", "-qm", f"{name} {text}")
    return git(place, "rev-parse", "HEAD")


def test_a_version_can_be_read_from_tags_and_a_merge_base_found(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "v1.2.3")
    git(repository, "tag", "-a", "-m", "x", "v1.2.4")
    base = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-qb", "feat/x")
    commit(repository, "b.txt", "two")
    git(repository, "checkout", "-q", "main")
    aside = commit(repository, "c.txt", "three")
    git(repository, "tag", "of-main-only")
    git(repository, "update-ref", "refs/remotes/origin/main", base)
    git(repository, "branch", "secret", aside)
    git(repository, "checkout", "-q", "feat/x")
    guest, _ = enter(repository, tmp_path)
    assert git(guest, "describe", "--tags").startswith("v1.2.4-1-g")
    assert git(guest, "merge-base", "main", "HEAD") == base == git(guest, "rev-parse", "origin/main")
    assert git(guest, "rev-parse", "main") == aside and git(guest, "branch", "--show-current") == "feat/x"
    # Of other branches and their tags nothing is known there.
    assert "secret" not in git(guest, "for-each-ref") and "of-main-only" not in git(guest, "tag")
    assert git(guest, "status", "--porcelain") == ""


def test_only_what_the_guest_made_comes_back(repository: Path, tmp_path: Path) -> None:
    git(repository, "checkout", "-qb", "feat/x")
    commit(repository, "b.txt", "two")
    git(repository, "checkout", "-q", "main")
    commit(repository, "c.txt", "three")
    git(repository, "checkout", "-q", "feat/x")
    guest, _ = enter(repository, tmp_path)
    found, bundle = find_repository(repository), tmp_path / "made.bundle"
    assert pull_commits(found, found.commit, "/workspace", FolderGuest(guest, bundle), IDENTITY).refs == ()
    made = commit(guest, "d.txt", "four")
    [returned] = pull_commits(found, found.commit, "/workspace", FolderGuest(guest, bundle), IDENTITY).refs
    assert (returned.ref, returned.commit, returned.changed) == ("refs/ktrdr/stream-a/feat/x", made, ("d.txt",))


@pytest.mark.parametrize("ref", ["refs/remotes/origin/main", "refs/heads/master", "refs/tags/v1"])
def test_a_ref_whose_commit_was_lost_costs_nothing_else(repository: Path, tmp_path: Path, ref: str) -> None:
    (repository / ".git" / ref).parent.mkdir(parents=True, exist_ok=True)
    (repository / ".git" / ref).write_text("0123456789" * 4 + "\n")
    guest, _ = enter(repository, tmp_path)
    assert (guest / "a.txt").read_text() == "one"


@pytest.mark.parametrize("name", ["v1.2.3", "HEAD-like", "heads/x", "fix/#42-thing"])
def test_a_branch_with_the_name_of_a_tag_is_the_branch(repository: Path, tmp_path: Path, name: str) -> None:
    git(repository, "tag", name)
    git(repository, "checkout", "-qb", name)
    made = commit(repository, "b.txt", "two")
    guest, _ = enter(repository, tmp_path)
    assert git(guest, "rev-parse", "HEAD", f"refs/heads/{name}").split() == [made, made]


@pytest.mark.usefixtures("library")
def test_what_of_a_submodule_is_left_out_is_named(repository: Path, tmp_path: Path) -> None:
    add_submodule(repository, tmp_path / "library", "vendor/lib")
    git(
        repository,
        *("-c", "protocol.file.allow=always", "submodule", "add", "-q"),
        str(tmp_path / "library"),
        "vendor/new",
    )
    (repository / "vendor/lib/made").write_text("by a tool")
    guest, notes = enter(repository, tmp_path, include=("vendor/lib/made", "none-such"))
    assert not (guest / "vendor/new").exists() and not (guest / "vendor/lib/made").exists()
    assert "the submodule vendor/new is not in the guest: it was added and not committed" in notes
    assert any("vendor/lib/made was not copied: it is in the submodule vendor/lib" in note for note in notes)
    assert any("none-such names no file of the workspace" in note for note in notes)


def add_submodule(repository: Path, inner: Path, path: str) -> None:
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), path)
    git(repository, "commit", "-qm", path)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A repository with a submodule of its own."""
    places = [tmp_path / name for name in ("deep", "library")]
    for place in places:
        place.mkdir()
        git(place, "init", "-q", "-b", "trunk")
        commit(place, f"{place.name}.txt", place.name)
    add_submodule(places[1], places[0], "deep")
    return places[1]


def test_submodules_are_filled_from_the_host_s_own_copies(repository: Path, library: Path, tmp_path: Path) -> None:
    add_submodule(repository, library, "vendor/lib")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive")
    (repository / "vendor/lib/library.txt").write_text("changed on the host")
    guest, notes = enter(repository, tmp_path)
    assert (guest / "vendor/lib/library.txt").read_text() == "changed on the host"
    assert (guest / "vendor/lib/deep/deep.txt").read_text() == "deep"
    assert (
        git(guest, "submodule", "status", "--recursive")
        .splitlines()[0]
        .startswith(git(repository / "vendor/lib", "rev-parse", "HEAD")[:7])
    )
    assert git(guest, "status", "--porcelain", "--ignore-submodules=dirty") == ""
    assert len([one for one in notes if "do not come back" in one]) == 2
    guest, _ = enter(repository, tmp_path / "clean", uncommitted="ignore")
    assert git(guest, "status", "--porcelain") == ""


def test_a_pointer_that_gitmodules_does_not_know_stops_no_copy(repository: Path, library: Path, tmp_path: Path) -> None:
    """An accident that is often committed: a clone added as if it were a folder. The submodules beside it are there."""
    add_submodule(repository, library, "vendor/lib")
    inner = repository / "clone"
    git(tmp_path, "clone", "-q", str(library), str(inner))
    git(repository, "add", "clone")
    git(repository, "commit", "-qm", "an accident")
    guest, notes = enter(repository, tmp_path)
    assert (guest / "vendor/lib/library.txt").exists() and list((guest / "clone").iterdir()) == []
    assert git(guest, "config", "submodule.vendor/lib.url") and any("clone is empty" in one for one in notes)


def test_a_submodule_that_cannot_be_copied_is_named(repository: Path, library: Path, tmp_path: Path) -> None:
    add_submodule(repository, library, "vendor/lib")
    old = git(repository, "rev-parse", "HEAD:vendor/lib")
    commit(library, "new.txt", "new")
    git(repository / "vendor/lib", "-c", "protocol.file.allow=always", "pull", "-q")
    git(repository, "commit", "-qam", "newer")
    git(repository / "vendor/lib", "checkout", "-q", old)
    _, notes = enter(repository, tmp_path)
    assert any("vendor/lib is empty" in one and "git submodule update vendor/lib" in one for one in notes)
    git(repository, "submodule", "deinit", "-q", "-f", "vendor/lib")
    guest, notes = enter(repository, tmp_path / "second")
    assert any("not checked out on the host" in one for one in notes) and list((guest / "vendor/lib").iterdir()) == []


def test_a_commit_brings_no_other_clone_in_as_a_submodule(repository: Path, tmp_path: Path) -> None:
    """A branch may name a clone of somebody's that lies in the workspace, at a commit that it has."""
    private = repository / "tools/private"
    private.mkdir(parents=True)
    git(private, "init", "-q", "-b", "main")
    known = commit(private, "known.txt", "known to everybody")
    commit(private, "secret.txt", "known to its owner alone")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{known},tools/private")
    git(repository, "commit", "-qm", "a submodule, it says")
    guest, notes = enter(repository, tmp_path)
    assert list((guest / "tools/private").iterdir()) == []
    assert any("tools/private is empty" in one and ".git/modules" in one for one in notes)


def test_a_submodule_of_a_linked_worktree_is_one(repository: Path, library: Path, tmp_path: Path) -> None:
    add_submodule(repository, library, "vendor/lib")
    git(repository, "worktree", "add", "-q", "-b", "aside", str(tmp_path / "aside"))
    git(tmp_path / "aside", "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init")
    guest, _ = enter(tmp_path / "aside", tmp_path)
    assert (guest / "vendor/lib/library.txt").read_text() == "library"


def test_a_submodule_s_pointer_is_a_change_like_any(repository: Path, library: Path, tmp_path: Path) -> None:
    add_submodule(repository, library, "tests/lib")
    guest, _ = enter(repository, tmp_path)
    git(guest / "tests/lib", "commit", "-q", "--allow-empty", "-m", "other")
    git(guest, "commit", "-qam", "only the pointer")
    found = find_repository(repository)
    there: Any = FolderGuest(guest, tmp_path / "made.bundle")
    [returned] = pull_commits(found, found.commit, "/workspace", there, IDENTITY).refs
    assert returned.changed == ("tests/lib",)


@pytest.mark.parametrize(
    "change", ["folder to link", "folder to file", "file to folder", "link to folder", "link to file"]
)
@pytest.mark.parametrize("staged", [True, False])
def test_what_replaced_something_else_is_there_as_on_the_host(
    repository: Path, tmp_path: Path, change: str, staged: bool
) -> None:
    for name in ("vendor/lib/sub/a", "vendor/lib/b", "plain"):
        commit(repository, name, name)
    (repository / "link").symlink_to("plain")
    git(repository, "add", "link")
    git(repository, "commit", "-qm", "link")
    lib, plain, link = repository / "vendor/lib", repository / "plain", repository / "link"
    if change.startswith("folder"):
        subprocess.run(["rm", "-r", lib], check=True)
        lib.symlink_to("../plain") if change.endswith("link") else lib.write_text("a file")
    elif change == "file to folder":
        plain.unlink()
        (plain / "x").mkdir(parents=True)
        (plain / "x/y").write_text("y")
    else:
        link.unlink()
        if change.endswith("folder"):
            link.mkdir()
        (link / "z" if change.endswith("folder") else link).write_text("z")
    if staged:
        git(repository, "add", "-A")
    guest, _ = enter(repository, tmp_path, include=("**",))
    for name in ("vendor/lib", "plain", "link"):
        here, there = repository / name, guest / name
        assert (here.is_symlink(), here.is_dir(), here.is_file()) == (
            there.is_symlink(),
            there.is_dir(),
            there.is_file(),
        ), name
        if here.is_symlink():
            assert os.readlink(here) == os.readlink(there)
    listed = [
        sorted(str(path.relative_to(top)) for path in top.rglob("*") if not {".git", ".ktrdr"} & set(path.parts))
        for top in (repository, guest)
    ]
    assert listed[0] == listed[1]


def test_what_include_does_not_bring_is_named(repository: Path, tmp_path: Path) -> None:
    inner = repository / "tools/inner"
    inner.mkdir(parents=True)
    git(inner, "init", "-q")
    commit(inner, "x", "x")
    (repository / "logs").mkdir()
    (repository / "tools/free").write_text("x")
    guest, notes = enter(repository, tmp_path, include=("tools/**", "logs", "nothing/*.env"))
    assert (guest / "tools/free").exists()
    assert any("tools/inner/" in one and "repository of its own" in one for one in notes)
    assert [one for one in notes if "names no file" in one] == [
        f"workspace.include: {pattern} names no file of the workspace, from its top, {repository}"
        for pattern in ("logs", "nothing/*.env")
    ]


def test_it_is_said_from_where_include_counts(repository: Path, tmp_path: Path) -> None:
    commit(repository, "services/api/x", "x")
    (repository / "services/api/.env").write_text("x")
    guest, notes = enter(repository, tmp_path, source="services/api", include=(".env",))
    assert next(one for one in notes if "include" in one).endswith(
        f"from its top, {repository}; did you mean services/api/.env?"
    )
    guest, notes = enter(repository, tmp_path / "second", source="services/api", include=("services/api/.env",))
    assert (guest / "services/api/.env").exists() and notes == []


@pytest.mark.parametrize("verify", ["fresh", "same"])
def test_what_is_judged_besides_the_commits_is_said_beforehand(repository: Path, verify: str) -> None:
    (repository / "a.txt").write_text("changed")
    document = {
        "version": 1, "name": "p", "image": "debian-13-docker", "verify": verify, "workload": {"command": ["true"]},
        "workspace": {"source": ".", "include": [".env"]},
    }  # fmt: skip
    said = list_beneath(find_repository(repository), build_profile(document))
    assert said == (("uncommitted changes (a.txt)", "untracked files that match .env") if verify == "fresh" else ())
    (repository / "a.txt").write_text("one")
    del document["workspace"]["include"]  # type: ignore[attr-defined]
    assert list_beneath(find_repository(repository), build_profile(document)) == ()


@pytest.mark.parametrize("name", ["trunk", "master", "release/1"])
def test_the_default_branch_is_what_the_clone_says(repository: Path, tmp_path: Path, name: str) -> None:
    git(repository, "branch", "-m", name)
    base = git(repository, "rev-parse", "HEAD")
    git(repository, "update-ref", f"refs/remotes/origin/{name}", base)
    git(repository, "symbolic-ref", "refs/remotes/origin/HEAD", f"refs/remotes/origin/{name}")
    git(repository, "checkout", "-qb", "feat/x")
    commit(repository, "b.txt", "two")
    guest, _ = enter(repository, tmp_path)
    assert git(guest, "merge-base", name, "HEAD") == base == git(guest, "rev-parse", f"origin/{name}")


def test_without_a_default_branch_there_is_the_branch_alone(repository: Path, tmp_path: Path) -> None:
    git(repository, "branch", "-m", "only")
    guest, _ = enter(repository, tmp_path)
    assert git(guest, "for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes").splitlines() == [
        "refs/heads/only"
    ]


@pytest.mark.parametrize("strange", ["folder", "repository"])
def test_the_advice_about_ownership_helps(repository: Path, strange: str) -> None:
    """Git runs as the owner of the repository. A sub-folder of somebody else's changes nothing; its top folder does."""
    person = 12345
    (repository / "svc").mkdir()
    subprocess.run(["chown", "-R", str(person), str(repository)], check=True)
    open_above(repository)
    os.chown(repository / "svc", 0, 0)
    assert find_repository(repository).owner[0] == find_repository(repository, "svc").owner[0] == person
    if strange == "folder":
        os.chown(repository, 0, 0)
    else:
        subprocess.run(["chown", "-R", "0", str(repository / ".git")], check=True)
    with pytest.raises(UsageError, match="the repository belongs to the user") as met:
        find_repository(repository)
    [advice] = re.findall("`(chown [^`]+)`", met.value.hint)
    subprocess.run(shlex.split(advice), check=True)
    assert find_repository(repository).owner[0] == (person if strange == "folder" else 0)


@pytest.mark.parametrize("other", ["refs/heads/refs/heads/main", "refs/tags/refs/heads/main"])
def test_a_ref_that_hides_the_branch_is_named(repository: Path, tmp_path: Path, other: str) -> None:
    """`git branch refs/heads/main` is an accident that Git allows, and then it bundles neither."""
    git(repository, "update-ref", other, "HEAD")
    commit(repository, "b.txt", "two")
    with pytest.raises(UsageError, match=f"the name refs/heads/main is ambiguous: there is also {other}"):
        enter(repository, tmp_path)


def test_a_ref_that_hides_the_default_branch_costs_that_branch_only(repository: Path, tmp_path: Path) -> None:
    git(repository, "checkout", "-q", "-b", "refs/heads/main")
    made = commit(repository, "b.txt", "two")
    guest, notes = enter(repository, tmp_path)
    assert git(guest, "rev-parse", "HEAD") == made
    assert git(guest, "branch", "--show-current") == "refs/heads/main"
    assert any("has no branch main: its name is ambiguous" in note for note in notes)
