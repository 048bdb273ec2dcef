"""A project is prepared once, where its owner trusts what is prepared, and every later sandbox finds it done."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from laboratory.instances import make_workspace
from laboratory.lab import Lab

from ktrdr_vm.host.journal import list_journals
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import Gathered, gather
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.project import build_best, find_best
from ktrdr_vm.templates.store import collect_templates, find_template, list_templates, remove_template

PROFILE = """\
version: 1
name: project
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
egress: {allow: [{host: allowed.test.lab, ports: [80]}]}
secrets: [{name: canary, source: {env: KTRDR_LAB_CANARY}}]
prepare: {playbook: prepare.yaml, key: [lock, missing]}
"""
PLAYBOOK = """\
- name: prepare
  hosts: all
  tasks:
    - name: what the lock file asks for
      ansible.builtin.shell: {cmd: "mkdir -p /srv/cache && cp lock /srv/cache/lock && ls /run/secrets > /srv/cache/secrets; true", chdir: /workspace}
      become: true
    - name: something from the outside, by the profile's rules
      ansible.builtin.command: {cmd: "curl -sS --fail --max-time 60 -o /srv/cache/fetched http://allowed.test.lab/"}
      become: true
    - name: a layer
      ansible.builtin.shell: {cmd: "printf 'FROM ktrdr-base:13\\\\nRUN echo layered > /layer\\\\n' | docker build -q -t project-layer -"}
      become: true
"""


def _git(place: Path, *words: str) -> None:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab"]
    subprocess.run(["git", *settings, *words], cwd=place, check=True, timeout=60, capture_output=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = make_workspace(tmp_path)
    (place / "project.yaml").write_text(PROFILE)
    (place / "prepare.yaml").write_text(PLAYBOOK)
    (place / "lock").write_text("one\n")
    _git(place, "add", "-A")
    _git(place, "commit", "-q", "-m", "a project")
    return place


def _gather(lab: Lab, workspace: Path, purpose: str, refs: tuple[str, ...] = ("main",)) -> Gathered:
    gathered = gather(workspace / "project.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id(purpose))
    return replace(gathered, policy=replace(gathered.policy, prepare_refs=refs))


def test_nothing_is_made_from_what_the_owner_does_not_trust(
    lab: Lab, image: Image, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case says None (it may be built) only where it is trusted. The template of the shape stands for every other
    answer."""
    base = TemplateFacts("base", "/nowhere")
    monkeypatch.setattr(
        "ktrdr_vm.templates.project.find_template", lambda _home, _plan, _image, project=None: None if project else base
    )
    notes: list[str] = []

    def find(refs: tuple[str, ...] = ("main",)) -> TemplateFacts | None:
        gathered = _gather(lab, workspace, "trust", refs)
        return find_best(lab.home, gathered, gathered.plan, image, notes.append)

    assert find() is None and notes == []
    assert find(()) is base and "(none)" in notes[-1]
    assert find(("release",)) is base and "main is not in" in notes[-1]
    (workspace / "lock").write_text("two\n")
    assert find() is base and "uncommitted" in notes[-1]
    _git(workspace, "checkout", "-q", "lock")
    (workspace / "missing").write_text("not committed\n")
    assert find() is base and "not committed" in notes[-1]
    (workspace / "missing").unlink()
    # An agent's branch, and its commit as a detached HEAD.
    _git(workspace, "checkout", "-q", "-b", "agent")
    assert find() is base and "agent is not in" in notes[-1]
    _git(workspace, "checkout", "-q", "--detach")
    assert find() is base and "detached" in notes[-1]


@pytest.mark.full
def test_what_was_prepared_is_there_for_every_later_sandbox(
    lab: Lab, image: Image, libvirt: Libvirt, workspace: Path
) -> None:
    gathered = _gather(lab, workspace, "prepared")
    plan = gathered.plan
    base = find_template(lab.home, plan, image) or build_template(lab.home, plan, image, libvirt, progress=print)
    template = build_best(lab.home, gathered, plan, image, libvirt, print)
    assert template.has_project and template.key != base.key
    assert [one.kind for one in list_templates(lab.home) if one.key == template.key] == ["project project"]
    assert "allowed.test.lab" in Path(template.directory, "egress.jsonl").read_text()
    # The sandbox in which it was prepared is gone, whole.
    assert [
        journal.instance_id for journal in list_journals(lab.home) if journal.instance_id.startswith("prepare--")
    ] == []
    # A branch that changes nothing of the key finds it; one that does, does not, and may not make its own.
    _git(workspace, "checkout", "-q", "-b", "agent")
    assert find_best(lab.home, gathered, plan, image, print) == template
    (workspace / "lock").write_text("changed\n")
    assert find_best(lab.home, _gather(lab, workspace, "changed"), plan, image, print) == base
    instance = Instance(lab.home, plan.identity, libvirt)
    try:
        with instance.locked():
            loaded = instance.create(plan, read_secret=lambda _: b"", mount_roots=(), template=template)
            guest = loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            said = guest.run(
                "cat /srv/cache/lock /srv/cache/secrets; ls -A /workspace; cat /srv/cache/fetched",
                become=True,
                timeout=60,
            )
            assert said.stdout.decode().startswith("one\nserved by")
            docker = guest.run("docker run --rm --network none project-layer cat /layer", become=True, timeout=300)
            assert docker.stdout == b"layered\n", docker.stderr
            assert [row.differences for row in loaded.status() if row.kind != "secret" and row.differences] == []
        # What an instance stands on is not collected, whatever became of it.
        os.utime(Path(template.directory, "manifest.json"), (0, 0))
        users = {journal.template for journal in list_journals(lab.home)}
        assert template.key not in str(collect_templates(lab.home, users, dry_run=True))
    finally:
        with instance.locked():
            instance.destroy()
    assert any(
        template.key in row["instance_id"] and "nobody" in row["reason"]
        for row in collect_templates(lab.home, (), dry_run=True)
    )
    assert remove_template(lab.home, template.key)
