"""What `verify` judges and by what: any commit, by profile and playbooks of its base, without the working tree. Real
Git, no VM."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.cli.verify import _telling
from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.evidence.forge import Status, notify_forge, parse_command
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.git import open_view
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.inputs import committed_files
from ktrdr_vm.inputs.committed_files import write_files
from ktrdr_vm.inputs.from_ref import Question, gather_ref
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.policy import load as policy_load
from ktrdr_vm.report.model import Commits, GateResult, RunReport
from ktrdr_vm.run.run import Run
from ktrdr_vm.run.warnings import find_first_lines
from ktrdr_vm.templates import project as prepare
from tests.fakes.guest import FolderGuest

PROFILE = "version: 1\nname: p\nimage: debian-13-docker\nworkspace: {source: .}\ngates: [unit]\n"
PLAY = "- hosts: all\n  tasks:\n    - {name: NAME, ansible.builtin.command: {cmd: make test}}\n"


def git(folder: Path, *words: str, stdin: bytes = b"") -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return (
        subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True, input=stdin)
        .stdout.decode()
        .strip()
    )


def commit(place: Path, files: dict[str, str], message: str = "work") -> str:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    git(place, "add", "-f", *files)
    git(place, "commit", "-qm", message)
    return git(place, "rev-parse", "HEAD")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose branch `work` has another profile and an empty gate."""
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KTRDR_TOKEN", "value")
    monkeypatch.setattr(policy_load, "POLICY_PATH", str(tmp_path / "no-policy.yaml"))
    place = tmp_path / "repo"
    place.mkdir()
    git(place, "init", "-q")
    commit(
        place,
        {"ktrdr.yaml": PROFILE, "playbooks/unit.yaml": PLAY.replace("NAME", "of the base"), "app.py": "1\n"},
        "base",
    )
    git(place, "checkout", "-qb", "work")
    commit(
        place,
        {
            "ktrdr.yaml": PROFILE.replace("unit", "none"),
            "playbooks/unit.yaml": PLAY.replace("NAME", "of the branch"),
            "app.py": "2\n",
        },
    )
    return place


@contextmanager
def gather(place: Path, ref: str = "HEAD", **more: Any) -> Iterator[Gathered]:
    question = Question(ref, more.pop("base", ""), more.pop("profile", "ktrdr.yaml"))
    with gather_ref(question, home=Home(place.parent / "home"), folder=place, **more) as gathered:
        yield gathered


def snapshot(place: Path) -> dict[str, str]:
    return {str(path): f"{path.lstat().st_mtime_ns} {path.lstat().st_mode}" for path in place.rglob("*")}


def test_profile_and_playbooks_are_those_of_the_merge_base(place: Path) -> None:
    base = git(place, "rev-parse", "main")
    git(place, "checkout", "-q", "main")
    commit(place, {"ktrdr.yaml": PROFILE.replace("unit", "later")}, "the trusted branch went on")
    git(place, "checkout", "-q", "work")
    with gather(place) as found:
        assert found.base is not None and found.base.commit == base and found.base.ref == "refs/heads/work"
        assert found.plan.profile.gates == ("unit",) and found.plan.facts.base_commit == git(place, "rev-parse", "work")
        [(_, playbook)] = found.playbooks
        assert [task.name for task in playbook.plays[0].tasks] == ["of the base"]
        assert found.plan.facts.workspace == str(place)
        root = found.base.root
        assert (root.stat().st_mode & 0o077, (root / "app.py").read_text()) == (0, "1\n")
    assert not root.exists()


def test_the_working_tree_is_neither_used_nor_changed(place: Path) -> None:
    (place / "playbooks" / "unit.yaml").write_text(PLAY.replace("NAME", "uncommitted"))
    (place / "ktrdr.yaml").write_text("not a profile")
    (place / "app.py").unlink()
    before = snapshot(place)
    with gather(place) as found:
        assert (
            found.plan.profile.name == "p"
            and "uncommitted" not in (found.documents / "playbooks/unit.yaml").read_text()
        )
        assert found.plan.profile.workspace is not None and found.plan.profile.workspace.uncommitted == "ignore"
    assert snapshot(place) == before


def test_the_instance_is_that_of_the_repository_and_the_branch(place: Path) -> None:
    git(place, "branch", "other", "work")
    names = {}
    for ref in ("work", "refs/heads/work", "HEAD", "other", git(place, "rev-parse", "work")):
        with gather(place, ref) as found:
            names[ref] = found.plan.identity.instance_id
            assert (found.plan.facts.base_ref, found.plan.facts.base_commit) == (
                {"other": "other"}.get(ref, "work" if len(ref) < 40 else ref),
                git(place, "rev-parse", "work"),
            )
    assert names["work"] == names["refs/heads/work"] == names["HEAD"] and len(set(names.values())) == 3
    assert all(name.startswith("repo") for name in names.values())
    with gather(place, instance_id="mine") as found:
        assert found.plan.identity.instance_id == "mine"


def test_any_commit_is_judged_by_any_base(place: Path) -> None:
    git(place, "tag", "-a", "v1", "-m", "one", "main")
    work = git(place, "rev-parse", "work")
    for ref in ("work", work, work[:12], "HEAD", "refs/heads/work"):
        with gather(place, ref, base="v1") as found:
            assert found.repository is not None and found.repository.commit == work
            assert found.base is not None and found.base.commit == git(place, "rev-parse", "main")
    with gather(place, "main", base="work^{commit}~1") as found:
        assert found.base is not None and found.base.changed == ()


def test_parts_of_the_profile_that_do_not_fit_a_commit_alone_are_left_out(place: Path) -> None:
    git(place, "checkout", "-q", "main")
    more = (
        "mode: interactive\nsecrets: [{name: t, source: {env: KTRDR_TOKEN}}]\nworkload: {command: [agent]}\n"
        "prepare: {playbook: playbooks/unit.yaml, key: [app.py]}\nmounts: [{source: ./shared, target: /data}]\n"
    )
    (place / "shared").mkdir()
    text = PROFILE.replace("{source: .}", "{source: ., include: [.env]}")
    commit(place, {"ktrdr.yaml": text + more})
    with gather(place) as found:
        profile = found.plan.profile
        assert profile.workspace is not None and profile.workspace.include == ()
        assert [one.target for one in profile.mounts] == ["/data"]
        assert (profile.mode, profile.secrets, profile.workload, profile.prepare) == ("sandbox", (), None, None)


def test_no_template_is_prepared_from_a_judged_commit(place: Path) -> None:
    """The checked-out branch may be trusted; the commit is not that of it."""
    with gather(place) as found:
        assert found.repository is not None
        repository = found.repository
    refusal = prepare._distrust(found, repository, SimpleNamespace(playbook="playbooks/unit.yaml", key=()))  # type: ignore[arg-type]
    assert "not that of a trusted branch" in refusal


@pytest.mark.parametrize("ref", ["nothing", "--help", "-", "", "HEAD:app.py", "\x00x", "main..work", "@{u}", "0" * 40])
def test_what_names_no_commit_is_refused(place: Path, ref: str) -> None:
    with pytest.raises(UsageError), gather(place, ref):
        pass


@pytest.mark.parametrize("profile", ["/etc/passwd", "../ktrdr.yaml", "a/../../x", "absent.yaml"])
def test_a_profile_is_a_file_of_the_base(place: Path, profile: str) -> None:
    with pytest.raises(UsageError), gather(place, profile=profile):
        pass


def test_a_shipped_profile_may_judge(place: Path) -> None:
    with gather(place, profile="startability", gates=("startability",)) as found:
        assert found.plan.profile.name == "startability" or found.plan.profile.gates
        assert str(found.documents) not in str(found.playbooks[0][1].path)


def test_gates_are_required_and_those_of_the_base(place: Path) -> None:
    git(place, "checkout", "-q", "main")
    commit(place, {"ktrdr.yaml": PROFILE.replace("gates: [unit]\n", "")})
    with pytest.raises(UsageError, match="no gate"), gather(place):
        pass
    commit(place, {"ktrdr.yaml": PROFILE.replace("unit", "../../../etc/x.yaml")})
    with pytest.raises(DocumentError), gather(place):
        pass


def test_a_link_in_the_base_is_no_playbook(place: Path) -> None:
    git(place, "checkout", "-q", "main")
    (place / "playbooks" / "unit.yaml").unlink()
    (place / "playbooks" / "unit.yaml").symlink_to("/etc/passwd")
    git(place, "commit", "-qam", "a link")
    with pytest.raises(DocumentError), gather(place):
        pass


def test_without_a_trusted_branch_a_base_is_required(place: Path) -> None:
    git(place, "branch", "-qm", "main", "trunk")
    with pytest.raises(UsageError, match="no trusted branch"), gather(place):
        pass
    with gather(place, base="trunk") as found:
        assert found.plan.profile.gates == ("unit",)
    git(place, "checkout", "-q", "--orphan", "main")
    git(place, "commit", "-qm", "another beginning")
    with pytest.raises(UsageError, match="no common history"), gather(place, "work"):
        pass


def test_the_report_says_which_judges_the_commit_changes(place: Path) -> None:
    with gather(place) as found:
        assert found.base is not None
        [line] = find_first_lines([Commits(found.base.ref, "c" * 40, found.base.changed)], found)
    assert "changes the profile or playbooks: ktrdr.yaml, playbooks/unit.yaml" in line


def test_a_commit_that_judges_itself_is_said(place: Path) -> None:
    with gather(place, "main") as found:
        [line] = find_first_lines([], found)
        assert "its own base" in line
    with gather(place, "work") as found:
        assert find_first_lines([], found) == ()


# -- hostile trees -----------------------------------------------------------------------------------------------------


def make_tree(place: Path, name: bytes, content: bytes = b"x") -> str:
    """A commit whose tree has a file of a name that Git's own commands refuse."""
    blob = git(place, "hash-object", "-w", "--stdin", stdin=content)
    raw = b"100644 " + name + b"\0" + bytes.fromhex(blob)
    tree = write_object(place, b"tree", raw)
    return git(place, "commit-tree", "-m", "x", tree)


def write_object(place: Path, kind: bytes, raw: bytes) -> str:
    data = kind + b" %d\0" % len(raw) + raw
    name = hashlib.sha1(data).hexdigest()
    path = place / ".git" / "objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(data))
    return name


@pytest.mark.parametrize("name", [b"../outside", b"/etc/outside", b"a/../../outside", b"..", b"."])
def test_a_name_that_leads_out_of_the_folder_is_not_written(place: Path, name: bytes) -> None:
    made = make_tree(place, name)
    with open_view(find_repository(place).place) as view, write_files(view, made) as root:
        assert list(root.iterdir()) == [] and not (root.parent / "outside").exists()
    assert not Path("/etc/outside").exists()


def test_a_folder_that_is_a_link_as_well_leads_nowhere(place: Path) -> None:
    link, blob = (git(place, "hash-object", "-w", "--stdin", stdin=one) for one in (str(place.parent).encode(), b"x"))
    inner = write_object(place, b"tree", b"100644 outside\0" + bytes.fromhex(blob))
    raw = b"120000 a\0" + bytes.fromhex(link) + b"40000 a\0" + bytes.fromhex(inner)
    made = git(place, "commit-tree", "-m", "x", write_object(place, b"tree", raw))
    with open_view(find_repository(place).place) as view, pytest.raises(UsageError), write_files(view, made) as root:
        pytest.fail(f"written to {root}")
    assert not (place.parent / "outside").exists()


@pytest.mark.parametrize(("name", "kept"), [("größe.txt".encode(), True), (b"b\xff", False), (b"a\nb", False)])
def test_names_that_no_playbook_can_have_are_left_out(place: Path, name: bytes, kept: bool) -> None:
    made = make_tree(place, name, b"content\n")
    with open_view(find_repository(place).place) as view, write_files(view, made) as root:
        assert [path.read_bytes() for path in root.iterdir()] == [b"content\n"] * kept


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_BYTES"])
def test_a_base_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    git(place, "checkout", "-q", "main")
    size = sum(int(line.split()[3]) for line in git(place, "ls-tree", "-rl", "HEAD").splitlines())
    fits = size if limit == "MAX_BYTES" else 3
    for allowed in (fits, fits - 1):
        monkeypatch.setattr(committed_files, limit, allowed)
        with open_view(find_repository(place).place) as view:
            if allowed == fits:
                with write_files(view, "HEAD") as root:
                    assert (root / "app.py").exists()
            else:
                with pytest.raises(UsageError, match="the base commit has more than"), write_files(view, "HEAD"):
                    pytest.fail("it is written")


def test_attributes_of_the_base_hide_no_file(place: Path) -> None:
    git(place, "checkout", "-q", "main")
    made = commit(place, {".gitattributes": "* export-ignore\n*.py filter=evil text eol=crlf\n", "run.sh": "$Id$\n"})
    (place / "run.sh").chmod(0o755)
    git(place, "commit", "-qam", "executable")
    with open_view(find_repository(place).place) as view, write_files(view, "HEAD") as root:
        assert (root / "app.py").read_bytes() == b"1\n" and (root / "run.sh").read_text() == "$Id$\n"
        assert os.access(root / "run.sh", os.X_OK)
    assert made


# -- the commit in the guest -------------------------------------------------------------------------------------------


class CommitGuest(FolderGuest):
    def send(self, command: Sequence[str] | str, source: BinaryIO, **_more: Any) -> None:
        with tarfile.open(fileobj=source) as archive:
            pytest.fail(f"files beside the commit: {archive.getnames()}")


def test_a_commit_that_no_ref_has_comes_into_the_guest_alone(place: Path, tmp_path: Path) -> None:
    lost = commit(place, {"app.py": "lost\n"})
    git(place, "reset", "-q", "--hard", "main")
    (place / "app.py").write_text("uncommitted\n")
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    target = tmp_path / "guest"
    target.mkdir()
    with gather(place, lost) as found:
        assert found.repository is not None and found.plan.profile.workspace is not None and found.base is not None
        assert found.base.ref == lost
        copy_in(found.repository, found.plan.profile.workspace, CommitGuest(target), user, "one", print)
    assert (target / "app.py").read_text() == "lost\n" and git(target, "rev-parse", "HEAD") == lost


# -- the forge ---------------------------------------------------------------------------------------------------------


def make_script(place: Path, body: str) -> tuple[str, ...]:
    script = place.parent / "status.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return (str(script),)


def notify(place: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch | None = None) -> list[str]:
    notes: list[str] = []
    notify_forge(
        [command],
        Status("success", "c" * 40, "a\n b" + "d" * 500, "https://ci.example/1"),
        find_repository(place),
        notes.append,
    )
    return notes


def test_a_command_gets_the_status_as_json(place: Path) -> None:
    assert notify(place, make_script(place, f"cat > {place.parent}/got; pwd > {place.parent}/where")) == []
    assert (place.parent / "where").read_text().strip() == str(place)
    got = json.loads((place.parent / "got").read_text())
    assert (got["state"], got["sha"], got["target"], got["context"]) == (
        "success",
        "c" * 40,
        "https://ci.example/1",
        "ktrdr-vm/verify",
    )
    assert got["description"] == "a b" + "d" * 137


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as another user")
def test_root_runs_a_command_as_the_owner_of_the_repository(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (place.parent, *place.parent.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    monkeypatch.setenv("ROOTS_TOKEN", "value")
    out = Path(f"/tmp/ktrdr-forge-{os.getpid()}")
    script = Path(f"/tmp/ktrdr-forge-{os.getpid()}.sh")
    script.write_text(f"#!/bin/sh\necho $(id -u) ${{ROOTS_TOKEN:-none}} $HOME > {out}\n")
    script.chmod(0o755)
    try:
        notes: list[str] = []
        repository = replace(find_repository(place), root=Path("/"))
        notify_forge([[str(script)]], Status("pending", "c" * 40, "d"), repository, notes.append)
        assert notes == [] and out.read_text() == "12345 none /nonexistent\n", "not root's home"
    finally:
        out.unlink(missing_ok=True)
        script.unlink()


@pytest.mark.parametrize(
    "body",
    ["exit 3", "kill -9 $$", "echo no >&2; exit 1", 'cat >/dev/null; echo \'{"state": "failure"}\'; exit 2'],
    ids=str,
)
def test_a_command_that_fails_is_a_note(place: Path, body: str) -> None:
    [note] = notify(place, make_script(place, body))
    assert "the forge was not told `success`" in note


def test_commands_that_do_not_exist_or_hang_are_notes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not told" in notify(place, ("no-such-program",))[0] and "not told" in notify(place, ("/nonexistent/x",))[0]
    monkeypatch.setattr("ktrdr_vm.evidence.forge.NOTIFY_LIMIT", 0.5)
    assert "did not end within" in notify(place, make_script(place, "sleep 60"))[0]


def test_a_command_that_does_not_read_and_lies_is_none_of_our_business(place: Path) -> None:
    assert notify(place, make_script(place, "echo 'merged, all green'; exit 0")) == []


@pytest.mark.parametrize(("text", "words"), [("gh api", ("gh", "api")), ("a 'b c' \"$d\"", ("a", "b c", "$d"))])
def test_a_command_is_words_and_no_shell(text: str, words: tuple[str, ...]) -> None:
    assert parse_command(text) == words


@pytest.mark.parametrize("text", ["", "  ", "'", "a\0b"])
def test_a_command_without_words_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_command(text)


def test_pending_is_followed_by_the_verdict_or_a_failure(place: Path) -> None:
    log = place.parent / "log"
    command = make_script(place, f"cat >> {log}; echo >> {log}")
    gate = GateResult("unit", "failed", "2026-01-01T00:00:00Z", 1.0)
    report = RunReport("one", "r1", "p", "sandbox", "a", "b", "failed", 1, "2026-01-01T00:00:00Z", 1.0, gates=(gate,))
    with gather(place) as found:
        with _telling([command], found, "") as tell:
            tell(report, place.parent, place.parent / "a.json")
        with pytest.raises(KeyboardInterrupt), _telling([command], found, "https://ci.example/2"):
            raise KeyboardInterrupt
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["state"] for one in told] == ["pending", "failure", "pending", "failure"]
    assert told[1]["description"] == "failed: unit" and told[1]["target"].endswith("report.html")
    assert (told[0]["target"], told[0]["summary"], told[0]["attestation"]) == ("", "", "")
    assert told[1]["attestation"] == str(place.parent / "a.json") and told[3]["attestation"] == ""
    assert "unit" in told[1]["summary"] and told[1]["ref"] == "work" and told[2]["target"] == "https://ci.example/2"
    assert "not verified" in told[3]["description"] and told[3]["target"] == "https://ci.example/2"
    assert {one["sha"] for one in told} == {git(place, "rev-parse", "work")}


@pytest.mark.skipif(os.geteuid() != 0, reason="`verify` is for root")
def test_the_owners_command_is_told_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed, owners = place.parent / "typed", place.parent / "owners"
    policy = place.parent / "policy.yaml"
    policy.write_text(f"verify: {{notify: [sh, -c, 'cat >> {owners}; echo >> {owners}']}}\n")
    monkeypatch.setattr(policy_load, "POLICY_PATH", str(policy))

    def end(_self: Run) -> None:
        raise UsageError("there is no room", hint="x")

    monkeypatch.setattr(Run, "execute", end)
    command = f"sh -c 'cat >> {typed}; echo >> {typed}'"
    words = ["verify", "work", "--workspace", str(place), "--notify", command]
    assert isinstance(CliRunner().invoke(cli, words, standalone_mode=False).exception, UsageError)
    for told in (typed, owners):
        assert [json.loads(line)["state"] for line in told.read_text().splitlines()] == ["pending", "failure"]


def test_errors_of_the_command_line_have_a_place_and_a_hint(place: Path) -> None:
    done = CliRunner().invoke(cli, ["verify", "nothing", "--workspace", str(place)], standalone_mode=False)
    assert isinstance(done.exception, UsageError) and done.exception.where == "REF" and done.exception.hint
