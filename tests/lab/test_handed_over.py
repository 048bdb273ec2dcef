"""Evidence that was handed to a person: whatever they put in its place, root neither reads nor writes anything with it
that is not theirs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory.person import open_above

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.evidence.bundle import make_bundle
from ktrdr_vm.evidence.otel_export import report_run
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import FinishedRun, create_run, find_run, hand_over
from ktrdr_vm.instance.inventory import Found
from ktrdr_vm.monitoring import metrics, overview
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import Commits, GateResult, RunReport, Verification, WorkloadResult

PERSON = (12345, 12345)
SECRET = '"root-s-own-secret"'
_LIBC = ctypes.CDLL(None, use_errno=True)


def git(folder: Path, *words: str) -> str:
    settings = [
        "-c",
        "user.name=lab",
        "-c",
        "user.email=lab@test.lab",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "safe.directory=*",
    ]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Where another user may pass through; pytest closes its own folder whenever a session begins."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-lab-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Made:
    """A run of a person's, in a state directory of root's, and files of root's beside it."""

    def __init__(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        self.home = Home(place / "home")
        self.home.create()
        self.repository = place / "repository"
        self.repository.mkdir()
        git(self.repository, "init", "-q")
        (self.repository / "a").write_text("1\n")
        git(self.repository, "add", ".")
        git(self.repository, "commit", "-qm", "base")
        base = git(self.repository, "rev-parse", "HEAD")
        git(self.repository, "commit", "-q", "--allow-empty", "-m", "work")
        done = git(self.repository, "rev-parse", "HEAD")
        git(self.repository, "update-ref", "refs/ktrdr/one/work", done)
        git(self.repository, "reset", "-q", "--hard", base)
        subprocess.run(["chown", "-R", "12345:12345", self.repository], check=True)
        self.roots = place / "roots"
        self.roots.mkdir(mode=0o700)
        for name in ("file", "file.md"):
            (self.roots / name).write_text(
                f'{{"time": "x", "egress": {SECRET}, "kind": {SECRET}, "verdict": {SECRET}}}\n'
            )
            (self.roots / name).chmod(0o600)
        gates = (GateResult("startability", "passed", "2026-01-01T00:00:00Z", 9.0, stage="verification"),)
        self.report = RunReport(
            "one", "r1", "p", "sandbox", "a" * 64, "b" * 64, "passed", 0, "2026-01-01T00:00:00Z", 60.0, base_commit=base, base_ref="main",
            gates=gates, workload=WorkloadResult(("agent",), "passed", 0, "2026-01-01T00:00:00Z", 5.0),
            verification=Verification("fresh", "one--verify", "refs/ktrdr/one/work", done, "passed", "passed"),
            commits=(Commits("refs/ktrdr/one/work", done, ()),),
        )  # fmt: skip
        path = create_run(self.home, "one", "r1")
        directory = RunDirectory(path, "one", PERSON, str)
        directory.event("run_started", profile="p")
        for name in ("report.html", "junit.xml", "console.log"):
            directory.write(name, "x\n")
        directory.write(
            "egress.jsonl", '{"time": "2026-01-01T00:00:00Z", "kind": "tls", "verdict": "allow", "name": "a.example"}\n'
        )
        directory.write("report.json", render_report_json(self.report))
        facts = {"workspace": str(self.repository), "owner_uid": 12345}
        source = {"version": 1, "name": "p", "image": "debian-13-docker", "workspace": {"source": "."}}
        plan = {"instance_id": "one", "profile": {"workspace": {"source": "."}}, "facts": facts, "source": source}
        directory.write("plan.json", json.dumps(plan))
        (path / "notes").mkdir()
        (path / "notes" / "summary.md").write_text("done\n")
        (path / "artifacts" / "g").mkdir()
        (path / "artifacts" / "g" / "a.txt").write_text("a\n")
        directory.close()
        self.run = path
        self.names = sorted(str(one.relative_to(path)) for one in path.rglob("*"))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made(tmp_path)
    monkeypatch.setenv("KTRDR_VM_HOME", str(made.home.root))
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12345")
    monkeypatch.setattr(metrics, "find_instances", lambda *_: [])
    return made


def use_all(made: Made, capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that reads a finished run; what was shown. An error that is told is fine, and so is nothing."""
    shown = ""
    for words in (
        ["report", "one"], ["report", "one", "--json"], ["report", "one", "--against", "r1"], ["events", "one"], ["logs", "one"],
        ["egress", "log", "one"], ["egress", "log", "one", "--json"], ["egress", "suggest", "one"], ["bundle", "one"],
    ):  # fmt: skip
        with contextlib.suppress(KtrdrError, SystemExit, OSError):
            cli.main(words, standalone_mode=False)
    for act in (
        lambda: overview._gates(made.home, Found("one")),
        lambda: metrics.render_metrics(made.home, None),  # type: ignore[arg-type]
        lambda: report_run(made.run, {}, {}, OwnerPolicy(), lambda _: None),
        lambda: list(FinishedRun(made.run).rows("events.jsonl")),
    ):
        with contextlib.suppress(KtrdrError, OSError):
            shown += str(act())
    captured = capsys.readouterr()
    shown += captured.out + captured.err
    for path in (made.run / "bundle", made.run / "bundle.tar.zst"):
        if path.is_symlink() or not path.exists():
            continue
        for one in (path, *path.rglob("*")):
            if one.is_file() and not one.is_symlink():
                shown += one.read_bytes().decode("utf-8", "replace")
    return shown


def as_person(act: Callable[[], None]) -> None:
    """Do it as the person: what root alone may do is no attack of theirs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(PERSON[1])
            os.setuid(PERSON[0])
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def swap(path: Path, how: str, made: Made) -> None:
    def act() -> None:
        if path.is_dir() and not path.is_symlink():
            path.rename(path.with_name(path.name + ".away"))
        elif os.path.lexists(path):
            path.unlink()
        if how == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to({"file": made.roots / "file", "folder": made.roots}[how])

    as_person(act)


def open_up(tmp_path: Path) -> None:
    open_above(tmp_path / "any")


@pytest.mark.parametrize("how", ["file", "folder", "fifo"])
def test_what_is_swapped_is_not_read_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Each name of a run directory, as the program made it: a new one is tried as well."""
    open_up(tmp_path)
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12345")
    monkeypatch.setattr(metrics, "find_instances", lambda *_: [])
    names = ["report.json"]
    for number, name in enumerate(names):
        made = Made(tmp_path / str(number))
        names += made.names if number == 0 else []
        monkeypatch.setenv("KTRDR_VM_HOME", str(made.home.root))
        before = {path: (path.read_bytes(), path.stat().st_mode, path.stat().st_uid) for path in made.roots.iterdir()}
        swap(made.run / name, how, made)
        began = time.monotonic()
        assert SECRET.strip('"') not in use_all(made, capsys), name
        with contextlib.suppress(KtrdrError):
            directory = RunDirectory(create_run(made.home, "one", "r1", continued=True), "one", PERSON, str)
            directory.event("run_continued")
            directory.write("console.log", "the guest's line\n")
            directory.write("report.json", render_report_json(made.report))
            directory.close()
        assert {
            path: (path.read_bytes(), path.stat().st_mode, path.stat().st_uid) for path in made.roots.iterdir()
        } == before, name
        assert time.monotonic() - began < 20
    assert len(names) > 12


@contextlib.contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """The person exchanges two names in a loop, also by a descriptor of the folder that they opened before."""
    end = threading.Event()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(PERSON[1])
        os.setuid(PERSON[0])
        folder = os.open(one.parent, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            _LIBC.renameat2(folder, one.name.encode(), folder, other.name.encode(), 2)
    try:
        yield
    finally:
        end.set()
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", ["report.json", "plan.json", "events.jsonl", "notes/summary.md"])
def test_an_exchange_in_a_loop_shows_nothing(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    open_up(tmp_path)
    target = made.run / name
    link = target.with_name("other.md")
    as_person(lambda: link.symlink_to(made.roots / "file.md"))
    with exchanging(target, link):
        for _ in range(25):
            assert SECRET.strip('"') not in use_all(made, capsys)
            with contextlib.suppress(KtrdrError, OSError):
                assert SECRET.encode() not in FinishedRun(made.run).read(name)


def test_a_hard_link_to_another_s_file_is_not_read(made: Made) -> None:
    """Where the kernel lets people make one."""
    (made.run / "events.jsonl").unlink()
    os.link(made.roots / "file", made.run / "events.jsonl")
    with pytest.raises(UsageError, match="belongs to another user"):
        FinishedRun(made.run).read("events.jsonl")


def test_another_person_s_run_is_not_read(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "12346")
    with pytest.raises(UsageError, match="belongs to another user"):
        FinishedRun(made.run).read("report.json")


def test_folders_above_a_run_stay_root_s(made: Made) -> None:
    for folder in (made.home.runs, made.run.parent):
        assert folder.stat().st_uid == 0 and folder.stat().st_mode & 0o777 in (0o700, 0o711)
    # As an earlier version left them.
    os.chown(made.run.parent, *PERSON)
    create_run(made.home, "one", "r2")
    assert made.run.parent.stat().st_uid == 0


def test_what_root_kept_of_a_run_is_root_s_alone(made: Made) -> None:
    """Also the folder above, which tells the names of everybody's instances."""
    kept = [
        made.home.root / "digests",
        made.home.root / "digests" / "one",
        made.home.root / "digests" / "one" / "r1.json",
    ]
    assert [(one.stat().st_uid, one.stat().st_mode & 0o077) for one in kept] == [(0, 0)] * 3


def test_a_continued_run_keeps_what_was_not_changed_and_nothing_else(made: Made, tmp_path: Path) -> None:
    open_up(tmp_path)
    as_person(lambda: (made.run / "console.log").write_text("forged"))  # type: ignore[arg-type,return-value]
    held = os.open(made.run / "events.jsonl", os.O_WRONLY | os.O_APPEND)
    path = create_run(made.home, "one", "r1", continued=True)
    assert path.stat().st_uid == 0 and path.stat().st_mode & 0o777 == 0o700
    names = {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}
    assert {"events.jsonl", "artifacts/g/a.txt", "report.json"} <= names and "console.log" not in names
    # Whoever holds the old file open writes into the old file.
    os.write(held, b"forged\n")
    os.close(held)
    assert b"forged" not in (path / "events.jsonl").read_bytes()
    assert sorted(one.name for one in path.parent.iterdir() if one.name.startswith(".")) in ([], [".latest.new"])


# -- words and signatures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["report.json", "plan.json", "egress.jsonl", "notes/summary.md", "notes/new.md", "junit.xml"]
)
def test_what_was_rewritten_is_never_signed(made: Made, tmp_path: Path, change: str) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    assert make_bundle(made.run, PERSON, OwnerPolicy(signing_key=str(key))).signed
    path = made.run / change
    content = path.read_text() if path.exists() else ""
    path.write_text(content.replace("2026-01-01", "2026-01-02") + "\n")
    os.chown(path, *PERSON)
    with pytest.raises(UsageError, match="is not signed"):
        make_bundle(made.run, PERSON, OwnerPolicy(signing_key=str(key)))
    unsigned = make_bundle(made.run, PERSON, OwnerPolicy())
    assert not unsigned.signed and any(change in one for one in unsigned.missing)
    assert not (unsigned.directory / "SHA256SUMS.sig").exists()


def test_a_reviewer_accepts_the_owner_s_key_and_no_other(made: Made, tmp_path: Path) -> None:
    """As docs/for-reviewers.md says it."""
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "allowed_signers").write_text(f"owner@host {(tmp_path / 'key.pub').read_text()}")
    words = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(tmp_path / "allowed_signers"),
        "-I",
        "owner@host",
        "-n",
        "ktrdr-vm",
        "-s",
    ]
    for name, code in (("key", 0), ("other", 255)):
        bundle = make_bundle(made.run, PERSON, OwnerPolicy(signing_key=str(tmp_path / name)))
        sums = (bundle.directory / "SHA256SUMS").read_bytes()
        done = subprocess.run([*words, str(bundle.directory / "SHA256SUMS.sig")], input=sums, capture_output=True)
        assert (done.returncode == 0) == (code == 0)


WORDS = [
    "--output=/tmp/ktrdr-made-by-git",
    "-O/tmp/x",
    "HEAD",
    "main..HEAD",
    "",
    "a" * 39,
    "A" * 40,
    "refs/../../x",
    "@{-1}",
    5,
    None,
    ["x"],
    {},
]


@pytest.mark.parametrize("word", WORDS, ids=repr)
@pytest.mark.parametrize("place", ["base_commit", "verification.commit", "commits.0.ref", "commits.0.commit"])
def test_no_text_of_a_report_becomes_an_option_of_git(made: Made, tmp_path: Path, place: str, word: Any) -> None:
    report = json.loads((made.run / "report.json").read_text())
    *way, last = place.split(".")
    holder = report
    for step in way:
        holder = holder[int(step)] if step.isdigit() else holder[step]
    holder[last] = word
    if place.endswith("commit") and place != "base_commit":
        report["verification"]["commit"] = report["commits"][0]["commit"] = word
    (made.run / "report.json").write_text(json.dumps(report))
    os.chown(made.run / "report.json", *PERSON)
    with contextlib.suppress(KtrdrError):
        made_bundle = make_bundle(made.run, PERSON, OwnerPolicy())
        assert made_bundle.ref in ("", "refs/ktrdr/one/work")
    # The only files that one of the words could name.
    assert not Path("/tmp/ktrdr-made-by-git").exists()
    assert not (made.repository / "--output=").exists()


def test_a_plan_that_names_root_s_repository_shows_none_of_it(made: Made, tmp_path: Path) -> None:
    """What the person wrote says where the patches come from."""
    other = tmp_path / "root-s"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "root's own")
    plan = json.loads((made.run / "plan.json").read_text())
    plan["facts"]["workspace"] = str(other)
    (made.run / "plan.json").write_text(json.dumps(plan))
    os.chown(made.run / "plan.json", *PERSON)
    with pytest.raises(UsageError, match="belongs to another user"):
        make_bundle(made.run, PERSON, OwnerPolicy())


def test_latest_is_the_name_of_a_run_and_no_way_out(made: Made) -> None:
    latest = made.run.parent / "latest"
    for target in ("/etc", "../two/r1", "..", ".", "latest", ""):
        latest.unlink(missing_ok=True)
        if target:
            latest.symlink_to(target)
        with pytest.raises(UsageError):
            find_run(made.home, "one", "latest")


def test_evidence_s_digests_go_with_it(made: Made) -> None:
    from ktrdr_vm.host.run_removal import remove_old_runs

    assert list((made.home.root / "digests").rglob("*.json"))
    (made.run.parent / "latest").unlink()  # the newest run stays
    remove_old_runs(made.run.parent, 0)
    assert not list((made.home.root / "digests").rglob("*.json"))
    hand_over(create_run(made.home, "one", "r9"), PERSON)


def test_a_run_that_was_killed_before_its_end_is_taken_up_as_it_is(made: Made) -> None:
    path = create_run(made.home, "one", "r5")
    (path / "events.jsonl").write_text("{}\n")
    assert (create_run(made.home, "one", "r5", continued=True) / "events.jsonl").read_text() == "{}\n"


def test_nothing_is_written_into_what_was_handed_over(made: Made, tmp_path: Path) -> None:
    """The end of a run may be done twice, when it was interrupted."""
    open_up(tmp_path)
    path = create_run(made.home, "one", "r6")
    directory = RunDirectory(path, "one", PERSON, str)
    directory.close()
    for name in ("report.json", "console.log", "egress.jsonl"):
        as_person(lambda name=name: (path / name).symlink_to(made.roots / "file"))  # type: ignore[misc]
    before = (made.roots / "file").read_bytes()
    (tmp_path / "console").write_text("x")
    directory.write("report.json", "forged")
    directory.keep_console(tmp_path / "console")
    directory.keep_ledger([{"kind": "tls"}], add=False)
    directory.event("late")
    directory.close()
    assert (made.roots / "file").read_bytes() == before and (made.roots / "file").stat().st_uid == 0
