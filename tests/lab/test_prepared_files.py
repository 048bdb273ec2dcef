"""What a playbook of `prepare` reads and sends is committed, like the playbook itself. Real Git, no VM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_trusted_branch import BASE, PLAY, git, key_of, make_repository

from ktrdr_vm.host.paths import Home
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.templates import project

SENDS = """\
- hosts: all
  tasks:
    - include_tasks: more.yaml
    - copy: {src: given, dest: /srv/given}
"""


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("name", ["playbooks/more.yaml", "playbooks/files/given"])
def test_a_file_that_the_playbook_reads_or_sends_is_committed(tmp_path: Path, name: str, ignored: bool) -> None:
    repository = make_repository(tmp_path / "r")
    (repository / "playbooks/make.yaml").write_text(SENDS)
    (repository / "playbooks/files").mkdir()
    (repository / "playbooks/more.yaml").write_text("- debug: {}\n")
    (repository / "playbooks/files/given").write_text("given\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "all of it")

    def find_refusal() -> str:
        found = gather(repository / "p.yaml", home=Home(tmp_path / "home"), workspace=repository, instance_id="one")
        assert found.repository is not None and found.plan.profile.prepare is not None
        trusted = replace(found, policy=OwnerPolicy(prepare_refs=("main",)))
        return project._distrust(trusted, found.repository, found.plan.profile.prepare)

    assert find_refusal() == ""
    git(repository, "rm", "-q", "--cached", name)
    if ignored:
        (repository / ".gitignore").write_text(f"/{name}\n")
        git(repository, "add", ".gitignore")
    git(repository, "commit", "-qm", "one is left out")
    assert "is not committed" in find_refusal()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lock", "2\n"),
        ("playbooks/make.yaml", PLAY.replace("make deps", "make more")),
        ("playbooks/files/given", "another\n"),
        ("p.yaml", BASE + "egress: {allow: [{host: more.example}]}\n"),
        ("p.yaml", BASE.replace("{source: .}", "{source: ., target: /srv/work}")),
        ("p.yaml", BASE + "vars: {a: 1}\n"),
    ],
)
def test_each_input_of_the_preparation_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    repository = make_repository(tmp_path / "r")
    (repository / "playbooks/files").mkdir()
    (repository / "playbooks/files/given").write_text("given\n")
    (repository / "playbooks/make.yaml").write_text(PLAY.replace("}]", "}, {copy: {src: given, dest: /srv/given}}]"))
    before = key_of(repository, monkeypatch)
    (repository / "of the tree").write_text("of no key\n")
    assert key_of(repository, monkeypatch) == before
    (repository / name).write_text(text)
    assert key_of(repository, monkeypatch) != before
