"""Commits and comments go into a living repository, and nothing of its agent's is lost. Real Git on both sides; the
last one in a VM."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from laboratory import command
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from test_commits import git

from ktrdr_vm.errors import GuestError, UsageError
from ktrdr_vm.guest import push as module
from ktrdr_vm.guest.commits import Returned, pull_commits
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.guest.push import MAX_COMMENTS, Push, Pushed, push_to
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.repository import Repository, find_repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.store import Image
from tests.fakes.guest import FolderGuest, RefusingGuest

IDENTITY = parse_instance_id("stream-a")


class PushedGuest(FolderGuest):
    """Keeps what it is sent, and what it says may be replaced by a lie."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tips: bytes | None = None
        self.answer: bytes | None = None
        self.sent: dict[str, bytes] = {}

    def run(self, command: Sequence[str] | str, **more: Any) -> GuestResult:
        done = super().run(command, **more)
        said = {module._TIPS: self.tips, module._LAND: self.answer}.get(command) if isinstance(command, str) else None
        return done if said is None else replace(done, stdout=said)

    def upload(self, source: BinaryIO, destination: str, **_more: Any) -> None:
        self.sent[destination.rpartition(".")[2]] = source.read()
        Path(destination).write_bytes(self.sent[destination.rpartition(".")[2]])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    commit(place, "a.txt", "one\n")
    return place


@pytest.fixture
def guest(home: Path, tmp_path: Path) -> PushedGuest:
    git(tmp_path, "clone", "-q", str(home), "guest")
    git(tmp_path / "guest", "update-ref", "refs/ktrdr/base", "HEAD")
    return PushedGuest(tmp_path / "guest")


def commit(where: Path, name: str, text: str) -> str:
    (where / name).write_text(text)
    git(where, "add", ".")
    git(where, "commit", "-qm", f"{name} {text}")
    return git(where, "rev-parse", "HEAD")


def push(home: Path, guest: PushedGuest, commit: str = "", branch: str = "", comments: bytes = b"") -> Pushed:
    return push_to(find_repository(home), Push(commit, branch, comments), "/workspace", guest)


def pull(home: Path, guest: PushedGuest, base: str) -> Returned:
    found: Repository = find_repository(home)
    there = FolderGuest(guest.folder)
    return pull_commits(found, base, "/workspace", there, IDENTITY)


def see(guest: PushedGuest) -> tuple[str, str]:
    """Every ref and every path that is not as committed."""
    return git(guest.folder, "for-each-ref"), git(guest.folder, "status", "--porcelain")


def test_commits_are_a_new_branch_each_time_beside_the_work(home: Path, guest: PushedGuest) -> None:
    work = commit(guest.folder, "work.txt", "of the agent\n")
    (guest.folder / "a.txt").write_text("being edited\n")
    fixes = [commit(home, "fix.txt", f"{number}\n") for number in (1, 2)]
    assert [push(home, guest, one) for one in fixes] == [
        Pushed(f"review/{number}", one, created=True) for number, one in enumerate(fixes, 1)
    ]
    assert git(guest.folder, "show", "review/2:fix.txt") == "2" and git(guest.folder, "rev-parse", "HEAD") == work
    assert (guest.folder / "a.txt").read_text() == "being edited\n" and not (guest.folder / "fix.txt").exists()
    # The number of a branch that the agent has deleted is not used again.
    git(guest.folder, "branch", "-D", "review/2")
    assert push(home, guest, fixes[0]).branch == "review/3"
    assert not list(Path("/var/tmp").glob("ktrdr-push-*"))


def test_what_is_not_committed_and_what_a_submodule_has_are_not_pushed(home: Path, guest: PushedGuest) -> None:
    inner = home / "sub"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "main")
    of_submodule = commit(inner, "inner.txt", "of the submodule\n")
    git(home, "update-index", "--add", "--cacheinfo", f"160000,{of_submodule},sub")
    git(home, "commit", "-qm", "a submodule")
    (home / "a.txt").write_text("not committed\n")
    (home / "staged.txt").write_text("not committed\n")
    git(home, "add", "staged.txt")
    push(home, guest, git(home, "rev-parse", "HEAD"))
    assert git(guest.folder, "ls-tree", "-r", "--name-only", "review/1").split() == ["a.txt", "sub"]
    assert git(guest.folder, "show", "review/1:a.txt") == "one"
    found = subprocess.run(["git", "cat-file", "-e", of_submodule], cwd=guest.folder, check=False, capture_output=True)
    assert found.returncode != 0


def test_only_what_is_new_is_sent_and_a_guest_cannot_probe_the_host(home: Path, guest: PushedGuest) -> None:
    secret = git(home, "commit-tree", "-m", "elsewhere", "HEAD^{tree}")
    fix = commit(home, "fix.txt", "x\n")
    push(home, guest, fix)
    small = guest.sent["bundle"]
    base = git(home, "rev-parse", "HEAD~")
    assert f"-{base}".encode() in small and base.encode() not in small.replace(f"-{base}".encode(), b"")
    # What it claims besides counts only in the history that it gets anyway.
    guest.tips = f"{base}\n{secret}\n{'0' * 40}\n--all\n".encode()
    push(home, guest, fix)
    assert secret.encode() not in guest.sent["bundle"] and b"--all" not in guest.sent["bundle"]
    # One that it does not have is its own loss.
    (guest.folder / ".git/refs/ktrdr/base").unlink()
    guest.tips = f"{commit(home, 'more.txt', 'y')}\n".encode()
    with pytest.raises(GuestError, match="did not take"):
        push(home, guest, commit(home, "more.txt", "z\n"))


def test_a_branch_moves_forward_only(home: Path, guest: PushedGuest) -> None:
    first = commit(home, "fix.txt", "1\n")
    assert push(home, guest, first, "review/parser") == Pushed("review/parser", first, created=True)
    second = commit(home, "fix.txt", "2\n")
    assert push(home, guest, second, "review/parser") == Pushed("review/parser", second, created=False)
    assert push(home, guest, second, "review/parser").created is False
    before = see(guest)
    git(home, "commit", "-q", "--amend", "-m", "again")
    with pytest.raises(UsageError, match="has commits that the pushed commit does not have, and nothing was changed"):
        push(home, guest, git(home, "rev-parse", "HEAD"), "review/parser")
    assert see(guest) == before


def test_a_clean_checked_out_branch_moves_with_its_files_and_a_changed_one_stays(
    home: Path, guest: PushedGuest
) -> None:
    fix = commit(home, "a.txt", "fixed\n")
    (guest.folder / ".git/hooks/post-merge").write_text("#!/bin/sh\ntouch ran\n")
    for name in ("push-to-checkout", "post-receive", "post-merge", "reference-transaction", "pre-push"):
        (guest.folder / ".git/hooks" / name).write_text(f"#!/bin/sh\ntouch {guest.folder}/ran\n")
        (guest.folder / ".git/hooks" / name).chmod(0o755)
    for name, text in (("a.txt", "being edited\n"), ("untracked.txt", "x\n")):
        kept = (guest.folder / name).read_text() if name == "a.txt" else None
        (guest.folder / name).write_text(text)
        before = see(guest)
        with pytest.raises(
            UsageError, match="checked out in the guest with uncommitted changes, and nothing was changed"
        ):
            push(home, guest, fix, "main")
        assert see(guest) == before and (guest.folder / name).read_text() == text
        (guest.folder / name).write_text(kept) if kept else (guest.folder / name).unlink()
    assert push(home, guest, fix, "main") == Pushed("main", fix)
    assert git(guest.folder, "rev-parse", "HEAD") == fix and (guest.folder / "a.txt").read_text() == "fixed\n"
    assert git(guest.folder, "status", "--porcelain") == "" and not (guest.folder / "ran").exists()


@pytest.mark.parametrize(
    ("ignored", "added"),
    [("env", "env"), ("env/of/agent", "env"), ("env", "env/of/host"), ("a/env/x", "a/env/x")],
)
def test_an_ignored_file_is_not_replaced(home: Path, guest: PushedGuest, ignored: str, added: str) -> None:
    (home / "a").mkdir()
    (home / "a/kept").write_text("x\n")
    (home / "fresh").write_text("x\n")
    base = commit(home, ".gitignore", "env\nfresh\n")
    push(home, guest, base, "main")
    (guest.folder / ignored).parent.mkdir(parents=True, exist_ok=True)
    (guest.folder / ignored).write_text("of the agent\n")
    (home / added).parent.mkdir(parents=True, exist_ok=True)
    (home / added).write_text("of the host\n")
    git(home, "add", "-f", added)
    git(home, "commit", "-qm", "no longer ignored")
    before = see(guest)
    with pytest.raises(UsageError, match="has ignored files where the commit adds files"):
        push(home, guest, git(home, "rev-parse", "HEAD"), "main")
    assert see(guest) == before and (guest.folder / ignored).read_text() == "of the agent\n"
    # Beside the ignored file there is room.
    git(home, "reset", "-q", "--hard", base)
    git(home, "add", "-f", "fresh")
    git(home, "commit", "-qm", "a file where the guest has none")
    push(home, guest, git(home, "rev-parse", "HEAD"), "main")
    assert (guest.folder / "fresh").exists() and (guest.folder / ignored).read_text() == "of the agent\n"


def test_a_file_that_the_configuration_hides_and_a_merge_are_not_replaced(home: Path, guest: PushedGuest) -> None:
    fix = commit(home, "fix.txt", "1\n")
    git(guest.folder, "config", "status.showUntrackedFiles", "no")
    (guest.folder / "other.txt").write_text("of the agent\n")
    with pytest.raises(UsageError, match="uncommitted changes"):
        push(home, guest, fix, "main")
    (guest.folder / "other.txt").unlink()
    # A merge that takes over no change: the tree is as committed.
    git(guest.folder, "branch", "side")
    tree, head = git(guest.folder, "rev-parse", "HEAD^{tree}", "HEAD").split()
    git(guest.folder, "update-ref", "refs/heads/side", git(guest.folder, "commit-tree", "-p", head, "-m", "s", tree))
    git(guest.folder, "merge", "--no-ff", "--no-commit", "-q", "side")
    with pytest.raises(UsageError, match="uncommitted changes"):
        push(home, guest, fix, "main")
    assert git(guest.folder, "rev-parse", "HEAD") == head and not (guest.folder / "fix.txt").exists()


def test_a_branch_in_use_elsewhere_is_left_alone(home: Path, guest: PushedGuest, tmp_path: Path) -> None:
    base = git(home, "rev-parse", "HEAD")
    fix = commit(home, "fix.txt", "1\n")
    git(guest.folder, "worktree", "add", "-q", str(tmp_path / "second"), "-b", "second", base)
    with pytest.raises(UsageError, match="in use in the guest"):
        push(home, guest, fix, "second")
    # In the middle of a rebase, the branch is checked out nowhere, and set at its end.
    git(guest.folder, "checkout", "-q", "-b", "work")
    rebase = [
        "git",
        "-c",
        "sequence.editor=sed -i 1ibreak",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "rebase",
        "-q",
        "-i",
        "--root",
    ]
    subprocess.run(rebase, cwd=guest.folder, check=True)
    assert (guest.folder / ".git/rebase-merge/head-name").read_text() == "refs/heads/work\n"
    with pytest.raises(UsageError, match="in use in the guest"):
        push(home, guest, fix, "work")
    assert git(guest.folder, "rev-parse", "work", "second").split() == [base, base]


def test_comments_are_numbered_files_that_are_not_in_the_work(home: Path, guest: PushedGuest) -> None:
    fix = commit(home, "fix.txt", "1\n")
    assert push(home, guest, fix, comments=b"Please use the parser.\n") == Pushed(
        "review/1", fix, True, ".ktrdr/review/1.md"
    )
    assert push(home, guest, comments="Naïve\n".encode()) == Pushed(comments=".ktrdr/review/2.md")
    text = (guest.folder / ".ktrdr/review/1.md").read_text()
    assert text == f"branch: review/1\ncommit: {fix}\n\nPlease use the parser.\n"
    assert (guest.folder / ".ktrdr/review/2.md").read_text() == "Naïve\n"
    assert git(guest.folder, "status", "--porcelain") == ""
    assert sorted(one.name for one in (guest.folder / ".ktrdr/review").iterdir()) == ["1.md", "2.md"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Push(), "nothing to push"),
        (Push("HEAD", "-q"), "is not the name of a branch"),
        (Push("HEAD", "a..b"), "is not the name of a branch"),
        (Push("HEAD", "x\ny"), "is not the name of a branch"),
        (Push("HEAD", "HEAD"), "is not the name of a branch"),
        (Push("", "main", b"x"), "is not the name of a branch"),
        (Push("", "", b"x" * (MAX_COMMENTS + 1)), "more than"),
        (Push("", "", b"\0"), "not text"),
    ],
)
def test_what_cannot_be_pushed_reaches_no_guest(home: Path, wanted: Push, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        push_to(find_repository(home), wanted, "/workspace", RefusingGuest())


def test_a_branch_beneath_a_branch_is_an_error_and_not_a_loop(home: Path, guest: PushedGuest) -> None:
    git(guest.folder, "branch", "review")
    with pytest.raises(UsageError, match="another branch is in its way"):
        push(home, guest, commit(home, "fix.txt", "1\n"))


@pytest.mark.parametrize(
    "lie", [b"", b"created main\n", b"created review/1\x1b[2J\n", b"moved review/999999999999\n", b"comments ../../x\n"]
)
def test_an_answer_of_the_guest_is_data(home: Path, guest: PushedGuest, lie: bytes) -> None:
    guest.answer = lie
    with pytest.raises(GuestError, match="its answer is not valid"):
        push(home, guest, commit(home, "fix.txt", "1\n"), comments=b"x")


def test_pushes_at_once_get_a_branch_and_a_file_each(home: Path, guest: PushedGuest) -> None:
    fixes = [commit(home, "fix.txt", f"{number}\n") for number in range(4)]
    done: list[Pushed] = []
    threads = [
        threading.Thread(target=lambda one=one: done.append(push(home, guest, one, comments=one.encode())))
        for one in fixes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.branch for one in done) == [f"review/{number}" for number in range(1, 5)]
    assert sorted(one.comments for one in done) == [f".ktrdr/review/{number}.md" for number in range(1, 5)]
    for one in done:
        assert git(guest.folder, "rev-parse", one.branch) == one.commit
        assert (guest.folder / one.comments).read_text().endswith(one.commit)


def test_what_was_pushed_does_not_come_back_as_work_and_work_on_it_does(home: Path, guest: PushedGuest) -> None:
    base = git(home, "rev-parse", "HEAD")
    own = commit(guest.folder, "work.txt", "of the agent\n")
    [first] = pull(home, guest, base).refs
    assert first.commit == own
    # A person adds to the work, and the agent takes it over without a commit of its own.
    git(home, "checkout", "-q", "-b", "aside", own)
    fix = commit(home, "fix.txt", "1\n")
    push(home, guest, fix)
    assert [one.ref for one in pull(home, guest, base).refs] == ["refs/ktrdr/stream-a/main"]
    git(guest.folder, "merge", "-q", "--ff-only", "review/1")
    [after] = pull(home, guest, base).refs
    assert (after.ref, after.commit) == ("refs/ktrdr/stream-a/main", fix)
    # A branch on which the agent went on is its own.
    git(guest.folder, "checkout", "-q", "review/1")
    more = commit(guest.folder, "more.txt", "x\n")
    git(guest.folder, "checkout", "-q", "main")
    assert {one.ref: one.commit for one in pull(home, guest, base).refs}["refs/ktrdr/stream-a/review/1"] == more


def test_a_commit_that_one_person_pulled_outlives_the_pull_of_another(home: Path, guest: PushedGuest) -> None:
    base = git(home, "rev-parse", "HEAD")
    first = commit(guest.folder, "work.txt", "first\n")
    pull(home, guest, base)
    git(guest.folder, "commit", "-q", "--amend", "-m", "another")
    second = git(guest.folder, "rev-parse", "HEAD")
    [returned] = pull(home, guest, base).refs
    assert returned.commit == second
    assert git(home, "for-each-ref", "--format=%(refname) %(objectname)", "refs/ktrdr").splitlines() == [
        f"refs/ktrdr/stream-a/=kept/{first} {first}", f"refs/ktrdr/stream-a/main {second}",
    ]  # fmt: skip
    commit(guest.folder, "work.txt", "third\n")
    pull(home, guest, base)
    assert len(git(home, "for-each-ref", "refs/ktrdr").splitlines()) == 2


PROFILE = """\
version: 1
name: push
mode: interactive
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
"""


def test_a_person_pushes_to_an_agent_at_work_and_pulls_what_it_made_of_it(
    lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    """By the command line, over SSH, into a machine whose workspace is being edited."""
    del image, libvirt
    workspace = make_workspace(tmp_path)
    (workspace / "push.yaml").write_text(PROFILE)
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "a profile")
    name = lab.new_id("push")
    try:
        made = command.run(
            lab,
            "apply",
            str(workspace / "push.yaml"),
            "--workspace",
            str(workspace),
            "--instance-id",
            name,
            limit=command.LIMIT,
        )
        assert made.code == 0, made.stderr
        at_work = "cd /workspace && echo mine > mine.txt && git add mine.txt && git commit -qm mine && echo edited >> stack/README.md"
        assert command.run(lab, "exec", name, "--", "sh", "-c", at_work).code == 0
        fix = commit(workspace, "fix.txt", "a fix\n")
        (tmp_path / "review.md").write_text("Please merge the fix.\n")
        pushed = command.run(lab, "push", name, "--comments", str(tmp_path / "review.md"), "HEAD", "--json")
        assert pushed.code == 0, pushed.stderr
        assert pushed.report == {"branch": "review/1", "commit": fix, "created": True, "comments": ".ktrdr/review/1.md"}
        refused = command.run(lab, "push", name, "HEAD", "--branch", "main")
        assert refused.code == 2 and "has commits that the pushed commit does not have" in refused.stderr
        answer = "cd /workspace && cat .ktrdr/review/1.md && tail -n 1 stack/README.md && git merge -q --no-edit review/1 && git status --short"
        said = command.run(lab, "exec", name, "--", "sh", "-c", answer)
        assert said.code == 0 and "Please merge the fix." in said.stdout and "edited" in said.stdout, said.stderr
        assert said.stdout.splitlines()[-1] == " M stack/README.md"
        pulled = command.run(lab, "pull", name, "--json")
        assert pulled.code == 0, pulled.stderr
        [row] = json.loads(pulled.stdout)
        assert row["ref"] == f"refs/ktrdr/{name}/main" and set(row["changed"]) == {"fix.txt", "mine.txt"}
        assert git(workspace, "show", f"{row['ref']}:mine.txt") == "mine"
    finally:
        assert command.run(lab, "destroy", "--yes", name).code == 0
