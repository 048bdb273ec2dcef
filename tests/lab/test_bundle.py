"""The bundle of a run, from files and a real repository: what is in it, when it is refused, and that nothing of the
guest acts in it."""

from __future__ import annotations

import io
import json
import os
import pwd
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.evidence import work
from ktrdr_vm.evidence.bundle import make_bundle, publish
from ktrdr_vm.evidence.reader import find_workspace
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.host.runs import hand_over
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import (
    Allowance,
    Commits,
    Denial,
    GateResult,
    RunReport,
    TaskResult,
    Verification,
    WorkloadResult,
)
from ktrdr_vm.report.pull_request import NotConfirmedError

ME = (os.getuid(), os.getgid())
EVIL = "`|<script>alert(1)</script>\x1b[2J ![x](http://evil.test/)"


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str, str]:
    """A repository with a base and, under refs/ktrdr/one/work, two commits on top of it."""
    place = tmp_path / "repository"
    place.mkdir()
    git(place, "init", "-q")
    (place / "app.py").write_text("print('wrong')\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "base")
    base = git(place, "rev-parse", "HEAD")
    git(place, "checkout", "-qb", "work")
    (place / "app.py").write_text("print('right')\n")
    git(place, "commit", "-qam", "The app says what is right")
    (place / "logo.bin").write_bytes(bytes(range(256)))
    git(place, "add", ".")
    git(place, "commit", "-qm", f"A logo {EVIL}")
    done = git(place, "rev-parse", "HEAD")
    git(place, "update-ref", "refs/ktrdr/one/work", done)
    git(place, "checkout", "-q", "main")
    git(place, "branch", "-qD", "work")
    return place, base, done


def make_run(place: Path, repository: tuple[Path, str, str], **changes: Any) -> Path:
    root, base, done = repository
    task = TaskResult(f"it answers {EVIL}", "uri", "ok", False, "2026-01-01T00:00:00Z", 1.0)
    settings: dict[str, Any] = {
        "gates": (GateResult("startability", "passed", "2026-01-01T00:00:00Z", 9.0, (task,), stage="verification"),),
        "workload": WorkloadResult(("agent",), "passed", 0, "2026-01-01T00:00:00Z", 5.0),
        "verification": Verification("fresh", "one--verify", "refs/ktrdr/one/work", done, "passed", "passed"),
        "commits": (Commits("refs/ktrdr/one/work", done, ("app.py", "logo.bin")),),
        "denied": (Denial(EVIL, "", 443, "tls", 2, "", "", f"unit: {EVIL}"),),
        "allowed": (Allowance("mirror.test", "", 80, "r", 1, 10, 20),),
        "base_commit": base,
        "base_ref": "main",
    } | changes
    report = RunReport(
        "one", "r1", "p", "sandbox", "a" * 64, "b" * 64, "passed", 0, "2026-01-01T00:00:00Z", 60.0, **settings
    )
    run = place / "state" / "runs" / "one" / "r1"
    (run / "notes" / "workspace").mkdir(parents=True)
    (run / "report.json").write_text(render_report_json(report))
    (run / "plan.json").write_text(
        json.dumps({"profile": {"workspace": {"source": "."}}, "facts": {"workspace": str(root)}})
    )
    (run / "egress.jsonl").write_text("{}\n")
    hand_over(run, ME)
    return run


def test_the_patches_apply_to_a_fresh_clone_and_give_the_same_tree(
    tmp_path: Path, repository: tuple[Path, str, str]
) -> None:
    root, base, done = repository
    bundle = make_bundle(make_run(tmp_path, repository), ME, OwnerPolicy())
    assert (bundle.ref, bundle.branch, bundle.base) == ("refs/ktrdr/one/work", "ktrdr/one/r1", base)
    assert bundle.work == "work"
    git(tmp_path, "clone", "-q", str(root), "fresh")
    fresh = tmp_path / "fresh"
    git(fresh, "am", "-q", *map(str, sorted((bundle.directory / "patches").iterdir())))
    assert git(fresh, "rev-parse", "HEAD^{tree}") == git(root, "rev-parse", f"{done}^{{tree}}")


def test_the_commits_arrive_as_they_were_judged_whatever_a_patch_cannot_say(
    tmp_path: Path, repository: tuple[Path, str, str]
) -> None:
    """A merge that changes what it merges, a commit without changes, and ends of lines that `git am` changes."""
    root, base, done = repository
    git(root, "checkout", "-q", "--detach", base)
    (root / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "Lines of another system")
    git(root, "merge", "-q", "--no-ff", "--no-commit", done)
    (root / "app.py").write_text("print('merged')\n")
    git(root, "commit", "-qam", "A merge that changes what it merges")
    merge = git(root, "rev-parse", "HEAD")
    git(root, "commit", "-q", "--allow-empty", "-m", "Nothing")
    last = git(root, "rev-parse", "HEAD")
    git(root, "update-ref", "refs/ktrdr/one/work", last)
    git(root, "checkout", "-q", "main")
    judged = Verification("fresh", "one--verify", "refs/ktrdr/one/work", last, "passed", "passed")
    settings = {"verification": judged, "commits": (Commits("refs/ktrdr/one/work", last, ()),)}
    bundle = make_bundle(make_run(tmp_path, repository, **settings), ME, OwnerPolicy())
    git(tmp_path, "clone", "-q", "--single-branch", str(root), "fresh")
    page = (bundle.directory / "PULL_REQUEST.md").read_text()
    assert "`git fetch commits.bundle` gives exactly the commits" in page
    git(tmp_path / "fresh", "fetch", "-q", str(bundle.directory / "commits.bundle"))
    assert git(tmp_path / "fresh", "rev-parse", "FETCH_HEAD") == last
    patches = sorted((bundle.directory / "patches").iterdir())
    assert len(patches) == 3 and all(path.stat().st_size for path in patches)
    for commit, why in ((merge, "a merge has none"), (last, "it is empty or too large")):
        assert not [path for path in patches if commit[:12] in path.name]
        missing = f"patch of {commit[:12]}: {why}; commits.bundle has it"
        assert missing in bundle.missing and missing in page
    assert "commits.bundle" in (bundle.directory / "SHA256SUMS").read_text()


def test_a_patch_that_git_cannot_write_is_named_and_its_commit_arrives(
    tmp_path: Path, repository: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "BOUNDS", ("prlimit", "--fsize=700", "--"))
    bundle = make_bundle(make_run(tmp_path, repository), ME, OwnerPolicy())
    [patch] = (bundle.directory / "patches").iterdir()
    done = repository[2]
    assert done[:12] not in patch.name, "a patch of 256 bytes as text is larger"
    assert f"patch of {done[:12]}: it is empty or too large; commits.bundle has it" in bundle.missing
    assert done in git(repository[0], "bundle", "list-heads", str(bundle.directory / "commits.bundle"))


def test_a_subject_is_one_line_whatever_stands_in_it(tmp_path: Path, repository: tuple[Path, str, str]) -> None:
    """Else what follows a form feed is a commit of the guest's own making, and its id a word of git's command line."""
    root, _, done = repository
    git(root, "checkout", "-q", "--detach", done)
    subject = "odd\x0c--output=x hidden\x0b-O/etc/passwd x\x85`@somebody x\u2028--no-stdout"
    (root / "odd.txt").write_text("odd\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", subject)
    last = git(root, "rev-parse", "HEAD")
    git(root, "update-ref", "refs/ktrdr/one/work", last)
    git(root, "checkout", "-q", "main")
    judged = Verification("fresh", "one--verify", "refs/ktrdr/one/work", last, "passed", "passed")
    bundle = make_bundle(
        make_run(tmp_path, repository, verification=judged, commits=(Commits("refs/ktrdr/one/work", last, ()),)),
        ME,
        OwnerPolicy(),
    )
    assert [path.name for path in sorted((bundle.directory / "patches").iterdir())][-1] == f"0003-{last[:12]}.patch"
    page = (bundle.directory / "PULL_REQUEST.md").read_text()
    assert "## Commits (3)" in page and f"- `{last[:12]}` `odd\\x0c--output=x" in page


def test_links_in_a_persons_run_lead_root_nowhere(tmp_path: Path, repository: tuple[Path, str, str]) -> None:
    """Who may run this program with sudo and nothing else would read and overwrite with it what is root's."""
    run, elsewhere = make_run(tmp_path, repository), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "victim").write_text("root's own")
    hand_over(run, (12345, 12345))
    os.chown(repository[0], 12345, 12345)
    subprocess.run(["chown", "-R", "12345:12345", repository[0]], check=True)
    (run / "bundle").symlink_to(elsewhere)
    (run / "bundle.tar.zst").symlink_to(elsewhere / "victim")
    bundle = make_bundle(run, (12345, 12345), OwnerPolicy())
    assert [path.name for path in elsewhere.iterdir()] == ["victim"] and (
        elsewhere / "victim"
    ).read_text() == "root's own"
    assert not bundle.archive.is_symlink() and not bundle.directory.is_symlink()
    assert {path.stat().st_uid for path in (run, bundle.archive, bundle.directory, *bundle.directory.rglob("*"))} == {
        12345
    }
    (run / "report.html").symlink_to(elsewhere / "victim")
    with pytest.raises(UsageError, match=r"report\.html is not a regular file in the run directory"):
        make_bundle(run, (12345, 12345), OwnerPolicy())
    assert run.stat().st_uid == 12345


def test_the_archive_holds_what_the_sums_say_and_is_the_same_each_time(
    tmp_path: Path, repository: tuple[Path, str, str]
) -> None:
    run = make_run(tmp_path, repository)
    bundle = make_bundle(run, ME, OwnerPolicy())
    first = bundle.archive.read_bytes()
    assert make_bundle(run, ME, OwnerPolicy()).archive.read_bytes() == first
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(first)).read()
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "unpacked"], input=raw, check=True)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert unpacked.name == "one-r1"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=unpacked, check=True)
    assert {"PULL_REQUEST.md", "report.json", "egress.jsonl", "patches", "SHA256SUMS"} <= {
        path.name for path in unpacked.iterdir()
    }


def test_the_page_says_what_was_judged_and_names_what_is_missing(
    tmp_path: Path, repository: tuple[Path, str, str]
) -> None:
    run = make_run(tmp_path, repository)
    (run / "notes" / "workspace" / "summary.md").write_text("It was wrong.\n~~~\n# not a title @somebody\n")
    bundle = make_bundle(run, ME, OwnerPolicy())
    page = (bundle.directory / "PULL_REQUEST.md").read_text()
    assert repository[2][:12] in page and "fresh VM (`one--verify`)" in page and "It was wrong." in page
    assert "~~~~text\nIt was wrong." in page, "the block can be left from inside"
    assert "The workload wrote no `choices.md`" in page
    assert any(one.startswith("choices.md") for one in bundle.missing) and not any(
        one.startswith("summary.md") for one in bundle.missing
    )
    assert "\x1b" not in page
    outside = "\n".join(line for line in page.splitlines() if not line.startswith("#")).replace("¦", "")
    for before, _, after in (part.partition("<script>") for part in outside.split("\n") if "<script>" in part):
        assert before.count("`") % 2 == 1 and after.count("`") >= 1, "guest text outside of code"


@pytest.mark.parametrize("state", ["failed", "error", "skipped"])
def test_it_is_refused_when_startability_did_not_pass(
    tmp_path: Path, repository: tuple[Path, str, str], state: Any
) -> None:
    judged = Verification("fresh", "one--verify", "refs/ktrdr/one/work", repository[2], state, state, "why it is so")
    with pytest.raises(NotConfirmedError, match=f"{state}.*why it is so") as caught:
        make_bundle(make_run(tmp_path, repository, verification=judged), ME, OwnerPolicy())
    assert caught.value.exit_code == 1


def test_it_is_refused_without_the_gate(tmp_path: Path, repository: tuple[Path, str, str]) -> None:
    with pytest.raises(NotConfirmedError, match="not run"):
        make_bundle(make_run(tmp_path, repository, verification=None, gates=()), ME, OwnerPolicy())


def test_commits_that_are_no_longer_what_was_judged_are_refused(
    tmp_path: Path, repository: tuple[Path, str, str]
) -> None:
    run = make_run(tmp_path, repository)
    git(repository[0], "update-ref", "refs/ktrdr/one/work", repository[1])
    with pytest.raises(UsageError, match="no longer the commit on which the gates ran"):
        make_bundle(run, ME, OwnerPolicy())


def test_it_is_signed_with_the_owners_key(tmp_path: Path, repository: tuple[Path, str, str]) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    bundle = make_bundle(make_run(tmp_path, repository), ME, OwnerPolicy(signing_key=str(key)))
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "ktrdr-vm", "-s", str(bundle.directory / "SHA256SUMS.sig")]
    sums = (bundle.directory / "SHA256SUMS").read_bytes()
    assert subprocess.run(check, input=sums, capture_output=True).returncode == 0
    assert subprocess.run(check, input=sums + b"x", capture_output=True).returncode != 0


def test_publishing_is_the_owners_command_and_only_his(tmp_path: Path, repository: tuple[Path, str, str]) -> None:
    run = make_run(tmp_path, repository)
    bundle = make_bundle(run, ME, OwnerPolicy())
    workspace = find_workspace(run)
    assert workspace is not None
    with pytest.raises(UsageError, match="no command"):
        publish(bundle, workspace, OwnerPolicy())
    line = (
        'git rev-parse "$KTRDR_REF"; echo "$KTRDR_REF|$KTRDR_BRANCH|$KTRDR_BASE|$KTRDR_GUEST_BRANCH"; pwd; test -n "$KTRDR_TITLE"'
        ' -a -s "$KTRDR_BODY_FILE" -a -s "$KTRDR_BUNDLE"'
    )
    printed = publish(bundle, workspace, OwnerPolicy(publish_command=("sh", "-c", line)))
    named = f"refs/ktrdr/one/work|ktrdr/one/r1|{repository[1]}|work"
    assert printed.split() == [repository[2], named, str(repository[0])]
    with pytest.raises(HostError, match="exit code 3: no login"):
        publish(bundle, workspace, OwnerPolicy(publish_command=("sh", "-c", "echo no login >&2; exit 3")))


@pytest.mark.parametrize("named", [True, False])
def test_what_verify_judged_is_published_as_it_was_named(
    tmp_path: Path, repository: tuple[Path, str, str], named: bool
) -> None:
    """It came from no guest, so it is no ref under refs/ktrdr/: a branch of the repository, or a commit by its id."""
    root, _, done = repository
    git(root, "branch", "feat/x", done)
    ref = "refs/heads/feat/x" if named else done
    judged = Verification("fresh", "one", ref, done, "passed", "passed")
    run = make_run(tmp_path, repository, verification=judged, commits=(Commits(ref, done, ()),))
    line = 'echo "$KTRDR_REF $KTRDR_BRANCH"; git rev-parse "$KTRDR_REF"'
    bundle, policy = make_bundle(run, ME, OwnerPolicy()), OwnerPolicy(publish_command=("sh", "-c", line))
    assert publish(bundle, find_repository(root), policy).split() == [ref, "ktrdr/one/r1", done]


@pytest.mark.host_root
def test_root_publishes_as_the_owner_of_the_repository_with_their_login(
    tmp_path: Path, repository: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after sudo, whose HOME is that of root."""
    monkeypatch.setenv("HOME", "/root")
    bundle, workspace = make_bundle(make_run(tmp_path, repository), ME, OwnerPolicy()), find_repository(repository[0])
    somebody = pwd.getpwnam("nobody")
    workspace = replace(workspace, owner=(somebody.pw_uid, somebody.pw_gid), root=Path("/"))
    policy = OwnerPolicy(publish_command=("sh", "-c", 'id -un; pwd; echo "$HOME" "$USER"'))
    assert publish(bundle, workspace, policy).split() == ["nobody", "/", somebody.pw_dir, "nobody"]


@pytest.mark.parametrize("name", ["main", "release", "work", "feat/x", "ktrdr/one/r1", "HEAD", "a.b+c"])
def test_the_documented_command_makes_one_new_branch_whatever_the_guest_calls_its_own(
    tmp_path: Path, repository: tuple[Path, str, str], name: str
) -> None:
    """The guest names what it has checked out, `main` too; what is pushed to is named by this program."""
    root, base, done = repository
    git(root, "update-ref", f"refs/ktrdr/one/{name}", done)
    git(tmp_path, "init", "-q", "--bare", "remote")
    git(root, "remote", "add", "origin", str(tmp_path / "remote"))
    git(root, "push", "-q", "origin", f"{base}:refs/heads/main", f"{base}:refs/heads/release")
    judged = Verification("fresh", "one--verify", f"refs/ktrdr/one/{name}", done, "passed", "passed")
    run = make_run(tmp_path, repository, verification=judged, commits=(Commits(f"refs/ktrdr/one/{name}", done, ()),))
    bundle = make_bundle(run, ME, OwnerPolicy())
    assert bundle.work == name
    documented = (PROJECT / "docs/owner-policy.md").read_text().split("```sh\n")[1].split("```")[0]
    command = "\n".join(line for line in documented.splitlines() if not line.startswith("gh "))
    workspace = find_workspace(run)
    assert workspace is not None
    publish(bundle, workspace, OwnerPolicy(publish_command=("sh", "-c", command)))
    heads = git(tmp_path / "remote", "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    assert sorted(heads) == sorted(
        [f"refs/heads/ktrdr/one/r1 {done}", f"refs/heads/main {base}", f"refs/heads/release {base}"]
    )
