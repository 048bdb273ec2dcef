"""A branch of a working environment: what was on the disk is there, and nothing that tells the two machines apart is
shared."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from laboratory import command
from laboratory.instances import make_workspace
from laboratory.lab import Lab

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.snapshot import find_snapshot, list_snapshots, remove_snapshot, take_snapshot
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = """\
version: 1
name: branch
mode: interactive
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
secrets: [{name: canary, source: {env: KTRDR_LAB_CANARY}}]
"""
ASK = """
echo hostname $(hostname)
echo machine-id $(cat /etc/machine-id)
echo host-key $(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)
echo login $(cat /home/ktrdr/.ssh/authorized_keys)
"""


def _shell(instance: LoadedInstance, line: str) -> str:
    done = instance.connect().run(line, become=True, timeout=60)
    return (done.stdout + done.stderr).decode()


def _ask(instance: LoadedInstance) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _shell(instance, ASK).splitlines())


def test_a_branch_has_the_disk_and_nothing_of_the_identity(
    lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path)
    (workspace / "branch.yaml").write_text(PROFILE)
    canary = f"CANARY{secrets.token_hex(16)}".encode()

    def make(purpose: str) -> tuple[Instance, Plan]:
        gathered = gather(
            workspace / "branch.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id(purpose)
        )
        return Instance(lab.home, gathered.plan.identity, libvirt), gathered.plan

    origin, plan = make("origin")
    branch, branch_plan = make("branch")
    try:
        with origin.locked():
            template = find_template(lab.home, plan, image) or build_template(
                lab.home, plan, image, libvirt, progress=print
            )
            old = origin.create(plan, read_secret=lambda _: canary, mount_roots=(), template=template)
            old.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            old.complete(read_secret=lambda _: canary, mount_roots=())
            # Written a moment before, and nobody synced it.
            _shell(old, "mkdir /srv/lived && seq 1 20000 > /srv/lived/numbers && echo $(hostname) > /srv/lived/who")
            _shell(old, "mkdir /workspace && echo unfinished > /workspace/mine")
            before = _ask(old)
            snapshot = take_snapshot(old, "first", read_secret=lambda _: canary)
            with pytest.raises(UsageError, match="already"):
                take_snapshot(old, "first", read_secret=lambda _: canary)
        assert list_snapshots(lab.home, origin.identity.instance_id) == [snapshot]
        # The origin goes on as it was, with its secret.
        assert _ask(old) == before
        assert _shell(old, "cat /run/secrets/canary") == canary.decode()
        _shell(old, "echo later > /srv/lived/who")

        reference = f"{origin.identity.instance_id}@first"
        with pytest.raises(UsageError, match="no snapshot"):
            find_snapshot(lab.home, reference + "x", branch_plan)
        words: list[str | Path] = [
            "apply",
            workspace / "branch.yaml",
            "--workspace",
            workspace,
            "--instance-id",
            branch.identity.instance_id,
        ]
        ended = command.run(
            lab, *words, "--from", reference, limit=command.LIMIT, environment={"KTRDR_LAB_CANARY": "another"}
        )
        assert ended.code == 0, ended.stderr
        # The branch is a copy: it needs the snapshot no more.
        assert remove_snapshot(lab.home, origin.identity.instance_id, "first")
        new = branch.load()
        assert _shell(new, "tail -1 /srv/lived/numbers; cat /srv/lived/who").split() == [
            "20000",
            origin.identity.instance_id,
        ]
        assert _shell(new, "cat /run/secrets/*") == "another"
        # It has the workspace of what it began from, and none was copied over it.
        assert _shell(new, "cat /workspace/mine") == "unfinished\n"
        after = _ask(new)
        assert after["hostname"] == branch.identity.instance_id
        assert [what for what in before if before[what] == after[what]] == []
        assert len(after["machine-id"]) == 32
        assert [status for status in new.status() if status.differences or not status.exists] == []
        assert json.loads(branch.paths.journal.read_bytes())["source"] == reference
    finally:
        for instance in (branch, origin):
            with instance.locked():
                instance.destroy()
