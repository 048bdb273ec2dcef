"""What approvals plug into a running fork: a folder, processors, memory. Asked for in the guest, ended by the guard, at
rest and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from laboratory.recorder import wait_until

from ktrdr_vm.approvals import apply as answers
from ktrdr_vm.errors import ProvisionError, UsageError
from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.guest.personalize import personalize
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.mounts import find_mounts
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.suspend import resume, suspend
from ktrdr_vm.policy import load as owner_policy
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = """\
version: 1
name: borrowing
mode: interactive
image: debian-13-docker
resources: {vcpus: 2, memory: 1GiB, disk: 10GiB}
mounts: [{source: ./shared, target: /data}]
"""
POLICY = (
    "resources: {max: {vcpus: 4, memory: 2GiB, disk: 20GiB}}\nescalations: {kinds: [mount, resources], longest: 2h}\n"
)
SIX = "--blocked it --why so --option wait --recommendation allow --decision 'may I' --evidence log"
MEMORY = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo"


@dataclass
class Borrower:
    """A fork that asks, and the owner who answers."""

    instance: LoadedInstance
    workspace: Path

    def shell(self, line: str) -> str:
        done = self.instance.connect().run(line, become=True, timeout=120)
        return (done.stdout + done.stderr).decode().strip()

    def asks(self, what: str) -> str:
        """The id of the escalation."""
        before = {one.id for one in self.instance.escalations.list()}
        said = self.shell(f"ktrdr-escalate {what} {SIX}")
        [new] = [one.id for one in self.instance.escalations.list() if one.id not in before] or [said]
        return new

    def is_given(self, one: str, seconds: int, **request: object) -> None:
        answers.approve(
            self.instance, one, read_policy(), reason="for the test", seconds=seconds, request=request or None
        )

    def state(self, one: str) -> str:
        return self.instance.escalations.find(one).current


@pytest.fixture(scope="module")
def borrower(lab: Lab, image: Image, libvirt: Libvirt, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Borrower]:
    patch = pytest.MonkeyPatch()
    policy = lab.home.root / "policy.yaml"
    policy.write_text(POLICY)
    patch.setattr(owner_policy, "POLICY_PATH", str(policy))
    workspace = make_workspace(tmp_path_factory.mktemp("loans"))
    (workspace / "more" / "deep").mkdir(parents=True)
    (workspace / "more" / "deep" / "input.txt").write_text("lent\n")
    (workspace / "borrow.yaml").write_text(PROFILE)
    gathered = gather(workspace / "borrow.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id("borrow"))
    plan = gathered.plan
    instance = Instance(lab.home, plan.identity, libvirt)
    try:
        template = find_template(lab.home, plan, image) or build_template(
            lab.home, plan, image, libvirt, progress=print
        )
        with instance.locked():
            loaded = instance.create(plan, read_secret=lambda _: b"", mount_roots=(), template=template)
            guest = loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            personalize(guest, plan, loaded.environment())
            loaded.complete(read_secret=lambda _: b"", mount_roots=())
        yield Borrower(loaded, workspace)
    finally:
        with instance.locked():
            instance.destroy()
        policy.unlink()
        patch.undo()


def test_a_fork_has_the_mounts_of_its_profile(borrower: Borrower) -> None:
    """Its memory is its own, so that virtiofs can see it, and came from the template: it never booted."""
    assert borrower.shell("cat /data/input.txt") == "from the host"
    live = borrower.instance.libvirt.describe(borrower.instance.identity.domain)
    assert borrower.instance.journal.template and 'value="-incoming"' in live.replace("'", '"')


def test_a_folder_is_lent_and_goes_at_its_end(borrower: Borrower) -> None:
    lent = borrower.asks("mount ./more /more")
    for wrong in ({"source": "./elsewhere"}, {"source": "."}, {"target": "/other"}):
        with pytest.raises(UsageError, match="exceeds the request"):
            borrower.is_given(lent, 60, **wrong)
    assert borrower.shell("ls -A /more 2>&1 || true") != "deep"
    borrower.is_given(lent, 25, source="./more/deep")
    assert borrower.shell("cat /more/input.txt; touch /more/x 2>&1 | grep -c Read-only") == "lent\n1"
    twice = borrower.asks("mount ./shared /more/again")
    with pytest.raises(UsageError, match="overlaps"):
        borrower.is_given(twice, 10)
    wait_until(lambda: not find_mounts(borrower.instance.paths.mounts / lent), "the guard takes it back", 60)
    assert borrower.state(lent) == "expired" and borrower.shell("ls -A /more") == ""
    assert borrower.shell("cat /data/input.txt") == "from the host", "the others stay"


def test_memory_is_lent_and_comes_back(borrower: Borrower) -> None:
    before = int(borrower.shell(MEMORY))
    too_much = borrower.asks("resources --vcpus 9")
    with pytest.raises(UsageError, match="9 vCPUs"):
        borrower.is_given(too_much, 60)
    lent = borrower.asks("resources --memory 2048")
    with pytest.raises(UsageError, match="exceeds the request"):
        borrower.is_given(lent, 60, memory=4096)
    borrower.is_given(lent, 20, memory=1500)
    wait_until(lambda: int(borrower.shell(MEMORY)) == before + 512, "all of it is there", 30)
    wait_until(
        lambda: borrower.state(lent) == "expired" and int(borrower.shell(MEMORY)) == before,
        "the guard asks for it back",
        120,
    )


def test_processors_are_lent_where_the_guests_kernel_has_room_for_them(borrower: Borrower) -> None:
    """Linux 6.12 in emulation has none beyond those that it booted with; then nothing is plugged in, and the answer
    says why."""
    room = int(borrower.shell("cat /sys/devices/system/cpu/possible").rpartition("-")[2]) + 1
    lent = borrower.asks("resources --vcpus 3")
    if room < 3:
        with pytest.raises(ProvisionError, match="supports 2 vCPUs"):
            borrower.is_given(lent, 600)
        assert (
            borrower.state(lent) == "pending"
            and borrower.instance.libvirt.count_vcpus(borrower.instance.identity.domain) == 2
        )
        return
    borrower.is_given(lent, 600)
    assert borrower.shell("nproc") == "3"
    answers.revoke_approval(borrower.instance, lent, reason="over")
    assert borrower.shell("nproc") == "2"


def test_a_loan_outlives_a_rest_and_not_its_end(borrower: Borrower) -> None:
    before = int(borrower.shell(MEMORY))
    folder, lent = borrower.asks("mount ./more /rested"), borrower.asks("resources --memory 1280")
    for one in (lent, folder):
        borrower.is_given(one, 3600)
    instance, more = borrower.instance, borrower.workspace / "more"
    with instance.locked():
        suspend(instance)
        assert not find_mounts(instance.paths.mounts), "nothing of the host is bound for a machine that sleeps"
        away = more.rename(borrower.workspace / "away")
        resume(instance, read_secret=lambda _: b"")
        with pytest.raises(ProvisionError, match=folder):
            answers.reapply(instance, read_policy())
        # What cannot be given keeps nothing else back.
        wait_until(lambda: int(borrower.shell(MEMORY)) == before + 256, "the memory is there without the folder", 30)
        away.rename(more)
        again = answers.reapply(instance, read_policy())
    assert {one.id for one in again} >= {lent, folder}
    assert (
        borrower.shell(f"{MEMORY}; cat /rested/deep/input.txt /data/input.txt")
        == f"{before + 256}\nlent\nfrom the host"
    )
    with instance.locked():
        suspend(instance)
        for one in (lent, folder):
            answers.revoke_approval(instance, one, reason="while it sleeps")
        resume(instance, read_secret=lambda _: b"")
        answers.reapply(instance, read_policy())
    assert borrower.shell("ls -A /rested; cat /data/input.txt") == "from the host"
    wait_until(lambda: int(borrower.shell(MEMORY)) == before, "what it slept with is asked for", 60)


def test_a_guest_that_keeps_a_folder_keeps_nothing(borrower: Borrower, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers no SSH, and lets the request to unplug lie: the daemon is ended. Without `end_process` this fails.

    The last test: nobody gets in any more, and the dead device stays in the machine, which cannot rest.
    """
    lent, instance = borrower.asks("mount ./more /kept"), borrower.instance
    borrower.is_given(lent, 600)
    assert borrower.shell("cat /kept/deep/input.txt") == "lent"
    borrower.shell("systemctl stop ssh.socket ssh.service 2>/dev/null; pkill -x sshd; true")
    instance.close()
    monkeypatch.setattr(Libvirt, "detach", lambda *_: None)
    answers.revoke_approval(instance, lent, reason="over")
    assert borrower.state(lent) == "revoked" and not find_mounts(instance.paths.mounts / lent)
    (borrower.workspace / "more" / "deep" / "later.txt").write_text("not yours\n")
    look = "(cat /kept/deep/later.txt > /tmp/said 2>&1 &) ; sleep 5; cat /tmp/said; echo seen"
    said = run_script(instance.libvirt, instance.identity.domain, look, "look")
    assert "not yours" not in said and "seen" in said
