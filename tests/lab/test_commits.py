"""The guest's commits come home as refs, and a bundle that lies leaves nothing. Real Git on both sides, no VM."""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from laboratory.person import open_above

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest import commits as module
from ktrdr_vm.guest.commits import pull_commits
from ktrdr_vm.host.git import REF
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.identity import parse_instance_id
from tests.fakes.guest import FolderGuest

IDENTITY = parse_instance_id("stream-a")


def git(where: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.invalid",
    }
    environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.invalid"}
    return subprocess.run(
        ["git", *words], cwd=where, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def pair(tmp_path):
    """The person's repository with one commit, and a guest that has a clone of it."""
    home = tmp_path / "home"
    home.mkdir()
    git(home, "init", "-q", "-b", "main")
    (home / "a.txt").write_text("one\n")
    git(home, "add", ".")
    git(home, "commit", "-qm", "base")
    git(tmp_path, "clone", "-q", str(home), "guest")
    return find_repository(home), FolderGuest(tmp_path / "guest", tmp_path / "made.bundle")


def pull(pair):
    repository, guest = pair
    return pull_commits(repository, repository.commit, "/workspace", guest, IDENTITY).refs


def commit(guest: FolderGuest, name: str, text: str, branch: str = "main") -> str:
    git(guest.folder, "checkout", "-q", "-B", branch)
    (guest.folder / name).write_text(text)
    git(guest.folder, "add", ".")
    git(guest.folder, "commit", "-qm", "work")
    return git(guest.folder, "rev-parse", "HEAD")


def refs(pair) -> list[str]:
    return git(pair[0].root, "for-each-ref", "--format=%(refname)").splitlines()


def test_commits_come_home_beneath_their_own_refs(pair):
    done = commit(pair[1], "b.txt", "two\n", "feat/x")
    (returned,) = pull(pair)
    assert returned.ref == "refs/ktrdr/stream-a/feat/x" and returned.commit == done and returned.changed == ("b.txt",)
    assert git(pair[0].root, "show", f"{returned.ref}:b.txt") == "two"
    # The person's branch and files are as they were.
    assert refs(pair) == ["refs/heads/main", "refs/ktrdr/stream-a/feat/x"]
    assert git(pair[0].root, "status", "--porcelain") == ""


def test_the_branch_that_is_checked_out_is_the_work(pair):
    commit(pair[1], "b.txt", "two\n", "feat/x")
    commit(pair[1], "c.txt", "three\n", "aside")
    git(pair[1].folder, "checkout", "-q", "feat/x")
    (pair[1].folder / "loose.txt").write_text("not committed\n")
    came = pull_commits(pair[0], pair[0].commit, "/workspace", pair[1], IDENTITY)
    chosen = came.choose(IDENTITY, "main")
    assert chosen is not None and chosen.ref == "refs/ktrdr/stream-a/feat/x" and came.loose == 1
    git(pair[1].folder, "checkout", "-q", "main")
    with pytest.raises(GuestError, match="the branch of the work is unknown"):
        pull_commits(pair[0], pair[0].commit, "/workspace", pair[1], IDENTITY).choose(IDENTITY, "other")


@pytest.mark.parametrize("detached", [False, True])
def test_a_file_with_the_name_of_a_ref_costs_no_commit(pair, detached):
    if detached:
        git(pair[1].folder, "checkout", "-q", "--detach")
    for name in ("HEAD", "main", "refs", "-q"):
        (pair[1].folder / name).write_text("x")
    git(pair[1].folder, "add", "--", "HEAD", "main", "refs", "-q")
    git(pair[1].folder, "commit", "-qm", "work")
    [returned] = pull(pair)
    assert returned.commit == git(pair[1].folder, "rev-parse", "--verify", "HEAD")


def test_a_commit_on_no_branch_comes_back_and_is_the_work(pair):
    git(pair[1].folder, "checkout", "-q", "--detach")
    (pair[1].folder / "b.txt").write_text("two\n")
    git(pair[1].folder, "add", ".")
    git(pair[1].folder, "commit", "-qm", "work")
    head = git(pair[1].folder, "rev-parse", "HEAD")
    came = pull_commits(pair[0], pair[0].commit, "/workspace", pair[1], IDENTITY)
    chosen = came.choose(IDENTITY, "main")
    assert chosen is not None and (chosen.ref, chosen.commit) == ("refs/ktrdr/stream-a/HEAD", head)
    assert git(pair[0].root, "rev-parse", chosen.ref) == head


def test_commits_come_back_when_the_hosts_branch_has_moved_on(pair):
    """The guest never had the plan's base: what it was given counts, and an error of Git's is none of "nothing new"."""
    git(pair[1].folder, "update-ref", "refs/ktrdr/base", "HEAD")
    head = commit(pair[1], "b.txt", "two\n")
    git(pair[0].root, "commit", "-q", "--allow-empty", "-m", "meanwhile")
    moved = find_repository(pair[0].root)
    [ref] = pull_commits(moved, moved.commit, "/workspace", pair[1], IDENTITY).refs
    assert ref.commit == head and git(pair[0].root, "rev-parse", ref.ref) == head
    git(pair[1].folder, "update-ref", "-d", "refs/ktrdr/base")
    assert [one.commit for one in pull_commits(moved, moved.commit, "/workspace", pair[1], IDENTITY).refs] == [head]
    (pair[1].folder / ".git/objects" / head[:2] / head[2:]).unlink()
    with pytest.raises(GuestError, match="could not create a bundle"):
        pull_commits(moved, moved.commit, "/workspace", pair[1], IDENTITY)


ODD = [f"fix/{character}42-thing" for character in "#@,=('%!&;$é漢\"`|<>{}"] + [
    "user@x", "a=b", "UPPER", "x" * 180, "feat/-x", "漢" * 60, f"{'é' * 90}/{'漢' * 3}",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_branch_of_any_name_that_git_allows_comes_back_and_costs_no_other(pair, name):
    good = commit(pair[1], "b.txt", "two\n", "good")
    odd = commit(pair[1], "c.txt", "three\n", name)
    came = pull_commits(pair[0], pair[0].commit, "/workspace", pair[1], IDENTITY)
    assert {one.commit for one in came.refs} == {good, odd}
    chosen = came.choose(IDENTITY, name)
    assert chosen is not None and chosen.commit == odd
    assert re.fullmatch(r"refs/ktrdr/stream-a/[A-Za-z0-9_.+/=-]+", chosen.ref)
    assert git(pair[0].root, "rev-parse", chosen.ref) == odd


def test_two_names_never_become_one_ref():
    names = [b"a#b", b"a=23b", b"a=3d23b", "aéb".encode(), b"a=c3=a9b", b"x" * 200, b"x" * 199, "漢".encode() * 60]
    refs = [module.escape_branch(name) for name in names]
    assert len(set(refs)) == len(names)
    assert [os.fsencode(module.unescape_branch(ref)) for ref in refs] == names
    assert all(REF.fullmatch(f"refs/ktrdr/stream-a/{ref}") for ref in refs), "the bundle of a run would refuse it"
    assert max(len(part) for ref in refs for part in ref.split("/")) < 250


def test_what_cannot_be_fetched_is_an_error_and_not_nothing(pair, monkeypatch):
    commit(pair[1], "b.txt", "two\n" * 1000)
    monkeypatch.setattr(module, "MAX_BUNDLE", 100)
    with pytest.raises(GuestError, match="has new commits, and they were not fetched"):
        pull(pair)


def test_of_many_branches_the_newest_come_back_and_the_rest_is_counted(pair, monkeypatch):
    monkeypatch.setattr(module, "_MAKE", module._MAKE.replace(f"head -n {module.MAX_REFS - 1}", "head -n 3"))
    for number in range(5):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2040-01-01T00:00:0{number} +0000")
        commit(pair[1], "a.txt", f"{number}\n", "now")
        git(pair[1].folder, "branch", f"b{number}")
        git(pair[1].folder, "reset", "-q", "--hard", "main")
    for name in ("-x", "x" * 201):
        git(pair[1].folder, "update-ref", f"refs/heads/{name}", "b0")
    git(pair[1].folder, "checkout", "-q", "b1")
    git(pair[1].folder, "branch", "-q", "-D", "now")
    beside = pair[1].folder.parent / "beside"
    git(pair[1].folder, "worktree", "add", "-q", "--detach", str(beside), "main")
    git(beside, "commit", "-q", "--allow-empty", "-m", "on no branch")
    (beside / "loose.txt").write_text("not committed\n")
    came = pull_commits(pair[0], pair[0].commit, "/workspace", pair[1], IDENTITY)
    assert {one.ref.removeprefix("refs/ktrdr/stream-a/") for one in came.refs} == {"b1", "b3", "b4"}
    # Those of b0, b2 and the other working tree.
    assert (came.loose, came.apart) == (1, 3)
    chosen = came.choose(IDENTITY, "main")
    assert chosen is not None and chosen.ref == "refs/ktrdr/stream-a/b1"


def test_what_no_branch_holds_is_counted(pair):
    """Commits under a tag alone, and stashes, are named before anything is destroyed."""
    base = git(pair[1].folder, "rev-parse", "HEAD")
    commit(pair[1], "b.txt", "two\n", "aside")
    git(pair[1].folder, "tag", "kept")
    git(pair[1].folder, "checkout", "-q", "main")
    git(pair[1].folder, "branch", "-q", "-D", "aside")
    (pair[1].folder / "a.txt").write_text("stashed\n")
    git(pair[1].folder, "stash")
    came = pull_commits(pair[0], base, "/workspace", pair[1], IDENTITY)
    assert (came.refs, came.loose, came.apart, came.stashed) == ((), 0, 1, 1)
    assert came.describe_left() == "1 commits on no branch that came back, 1 stashes"


def test_nothing_new_brings_nothing(pair):
    assert pull(pair) == () and refs(pair) == ["refs/heads/main"]


@pytest.mark.parametrize(
    "name", ["../../heads/main", "--upload-pack=x", "a..b", "x.lock", "a b", "\x1b[2J", "/x", "x/"]
)
def test_a_ref_that_lies_is_refused(pair, name):
    commit(pair[1], "b.txt", "two\n")
    pair[1].lie = lambda raw: raw.replace(b"refs/heads/main", f"refs/heads/{name}".encode(), 1)
    with pytest.raises(GuestError, match="refused"):
        pull(pair)
    assert refs(pair) == ["refs/heads/main"]


def test_a_ref_outside_of_heads_is_refused(pair):
    commit(pair[1], "b.txt", "two\n")
    pair[1].lie = lambda raw: raw.replace(b"refs/heads/main", b"refs/tags/v1.0x", 1)
    with pytest.raises(GuestError, match="not a branch"):
        pull(pair)


@pytest.mark.parametrize("line", ["{first} refs/heads/x\x0c{first} refs/heads/main", "{first} refs/heads/main"])
def test_what_is_judged_is_what_the_ref_names(pair, line):
    """A branch that stands in the list twice could be judged by one commit and stand at another."""
    first = commit(pair[1], "b.txt", "two\n")
    git(pair[1].folder, "branch", "x")
    commit(pair[1], "evil.txt", "three\n")

    def lie(raw: bytes) -> bytes:
        head, _, pack = raw.partition(b"\n\n")
        return head + b"\n" + line.format(first=first).encode() + b"\n\n" + pack

    pair[1].lie = lie
    with pytest.raises(GuestError, match=r"not a branch|twice"):
        pull(pair)
    assert refs(pair) == ["refs/heads/main"]


def test_an_object_that_unpacks_to_more_than_memory_is_refused(pair):
    """Three megabytes of a tree of zeros: without the bound, git takes three gigabytes for it."""
    size = 3 << 30
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(size >> 24)), packer.flush()])
    head, left = [0x20 | size & 15], size >> 4
    while left:
        head[-1] |= 0x80
        head.append(left & 0x7F)
        left >>= 7
    pack = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + packed
    commit(pair[1], "b.txt", "two\n")
    pair[1].lie = lambda raw: (
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\n" + pack + hashlib.sha1(pack).digest()
    )
    with pytest.raises(GuestError, match="Out of memory"):
        pull(pair)
    assert refs(pair) == ["refs/heads/main"]


def test_garbage_and_broken_objects_leave_nothing(pair):
    commit(pair[1], "b.txt", "two\n" * 100)
    for lie in (lambda raw: b"not a bundle", lambda raw: raw[:-40], lambda raw: raw[:-60] + bytes(60)):
        pair[1].lie = lie
        with pytest.raises(GuestError):
            pull(pair)
        assert refs(pair) == ["refs/heads/main"]


def test_hooks_and_filters_of_the_guest_are_never_executed(pair, tmp_path):
    trace = tmp_path / "executed"
    commit(pair[1], ".gitattributes", "* filter=evil diff=evil\n")
    commit(pair[1], "b.txt", "two\n")
    hook = pair[0].root / ".git" / "hooks" / "post-checkout"
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        hook = pair[0].root / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
        hook.chmod(0o755)
    assert pull(pair)
    assert not trace.exists()


def test_a_repository_of_a_person_stays_the_persons(pair):
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody else")
    repository, guest = pair
    for path in [repository.root, *repository.root.rglob("*")]:
        os.chown(path, 1234, 1234, follow_symlinks=False)
    open_above(repository.root, 0o055)
    commit(guest, "b.txt", "two\n")
    mine = find_repository(repository.root)
    assert pull_commits(mine, mine.commit, "/workspace", guest, IDENTITY).refs
    assert {path.stat().st_uid for path in (mine.root / ".git").rglob("*")} == {1234}
    shutil.rmtree(guest.folder)


@pytest.mark.parametrize("content", ["1" * 40, "no commit at all"])
def test_a_ref_without_its_commit_costs_no_other_and_is_counted(pair, content):
    done = commit(pair[1], "b.txt", "two\n", "good")
    (pair[1].folder / ".git/refs/heads/broken").write_text(f"{content}\n")
    repository, guest = pair
    returned = pull_commits(repository, repository.commit, "/workspace", guest, IDENTITY)
    assert [one.commit for one in returned.refs] == [done] and returned.branch == "good"
    assert returned.describe_left() == "1 commits on no branch that came back"


def test_a_branch_whose_name_another_ref_hides_is_an_error_and_not_nothing(pair):
    """Git leaves an ambiguous name out of a bundle with a warning, and succeeds."""
    guest = pair[1].folder
    commit(pair[1], "b.txt", "two\n", "good")
    git(guest, "update-ref", "refs/tags/HEAD", "main")
    git(guest, "checkout", "-q", "--detach")
    git(guest, "commit", "-q", "--allow-empty", "-m", "on no branch")
    with pytest.raises(GuestError, match="the name HEAD is ambiguous in the guest"):
        pull(pair)
    git(guest, "update-ref", "-d", "refs/tags/HEAD")
    assert [one.ref for one in pull(pair)][-1] == "refs/ktrdr/stream-a/HEAD"


def test_another_ref_that_is_hidden_is_counted(pair):
    guest = pair[1].folder
    commit(pair[1], "b.txt", "two\n", "aside")
    git(guest, "update-ref", "refs/heads/refs/heads/aside", "main")
    git(guest, "checkout", "-q", "main")
    commit(pair[1], "c.txt", "three\n", "work")
    repository, folder = pair
    returned = pull_commits(repository, repository.commit, "/workspace", folder, IDENTITY)
    assert "refs/ktrdr/stream-a/work" in [one.ref for one in returned.refs]
    assert "refs/ktrdr/stream-a/aside" in refs(pair) or returned.apart == 1


def test_a_branch_in_the_place_of_an_earlier_one_comes_back_and_the_earlier_one_is_kept(pair):
    first = commit(pair[1], "b.txt", "two\n", "a")
    pull(pair)
    guest = pair[1].folder
    for number, (old, new) in enumerate((("a", "a/b"), ("a/b", "a"))):
        git(guest, "checkout", "-q", "main")
        git(guest, "branch", "-D", old)
        done = commit(pair[1], "b.txt", f"{number}\n", new)
        assert [(one.ref, one.commit) for one in pull(pair)] == [(f"refs/ktrdr/stream-a/{new}", done)]
        assert f"refs/ktrdr/stream-a/=kept/{first}" in refs(pair)
        assert f"refs/ktrdr/stream-a/{old}" not in refs(pair)


def test_untracked_files_are_counted_whatever_the_guest_configured(pair):
    git(pair[1].folder, "config", "status.showUntrackedFiles", "no")
    (pair[1].folder / "loose.txt").write_text("x")
    repository, guest = pair
    assert pull_commits(repository, repository.commit, "/workspace", guest, IDENTITY).loose == 1
