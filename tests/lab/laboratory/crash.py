"""Runs one verb on an instance and dies by its own hand at one step of it. A process of its own, started by the crash
tests.

    python crash.py PROFILE INSTANCE_ID CELL                 dies with SIGKILL, or has not come to the step
    python crash.py guard NAME CELL DIRECTORY                the guard of that instance, which dies at the step

`inside` is right after the first thing that the step did to the host, or, when a daemon or the guest does it, while
they are at it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pycdlib

# The test's own folders are not in the way of the guard's import.
sys.path.append(str(Path(__file__).parents[1]))

from ktrdr_vm.approvals import apply as answers
from ktrdr_vm.approvals.loans import add_loan, remove_loan
from ktrdr_vm.egress import client as control
from ktrdr_vm.egress import guard_main
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.guest import agent
from ktrdr_vm.guest.ssh import SshGuest
from ktrdr_vm.host import durable, mounts, process
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import find_home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.store import ImageStore
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.branch import HostInputs, branch
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.secrets import remove_secrets
from ktrdr_vm.instance.suspend import resume, suspend
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.templates.store import find_template
from laboratory.cells import Cell, Step, all_cells

# What changes the host by itself: the first of these to return within the step is where `inside` is.
_DEEDS: set[CodeType] = {
    function.__code__
    for function in (process.run, process.start, pycdlib.PyCdlib.write_fp, os.fdopen, shutil.copyfile, shutil.rmtree, durable.sync,
                     mounts.bind_readonly, mounts.unmount, Path.unlink, Path.rename, Path.rmdir)
}  # fmt: skip
# What another process does for it: killed while that one is at it.
_ASKED: set[CodeType] = {
    function.__code__
    for function in (Libvirt.start, Libvirt.stop, Libvirt.save, Libvirt.restore, Libvirt.define, Libvirt.attach, Libvirt.detach,
                     Libvirt.monitor, Libvirt.suspend, Libvirt.resume, SshGuest.run, control.ask_guard, agent.begin_script, agent.Script.finish)
}  # fmt: skip
_AT_WORK = 0.03
PACKET = {
    "kind": "network", "request": {"host": "allowed.test.lab", "ports": [443]}, "seconds": 600, "blocked": "it", "why": "so",
    "options": ["wait"], "recommendation": "allow", "decision": "may I", "evidence": "log",
}  # fmt: skip
LOAN = {"source": "stack", "target": "/lent", "readonly": True}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(frame: FrameType, event: str, _argument: object) -> None:
    if event == "return" and frame.f_code in _DEEDS | _ASKED:
        die()
    if event == "call" and frame.f_code in _ASKED:
        threading.Timer(_AT_WORK, die).start()


def arm(cell: Cell) -> None:
    """From now on the process ends where the cell says."""
    if cell.step.owner is not None:
        _arm_method(cell.step, cell.when)
    else:
        _arm_statement(cell.step, cell.when)


def _arm_method(step: Step, when: str) -> None:
    original: Any = getattr(step.owner, step.method)

    def act(self: Any) -> None:
        if when == "before":
            die()
        if when == "inside":
            sys.setprofile(_watch)
        original(self)
        die()

    setattr(step.owner, step.method, act)


def _arm_statement(step: Step, when: str) -> None:
    first, last = step.lines
    there = False

    def in_function(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal there
        inside = first <= frame.f_lineno <= last
        if event == "line" and inside and not there:
            there = True
            if when == "before":
                die()
            if when == "inside":
                sys.setprofile(_watch)
        elif there and (event == "return" or (event == "line" and not inside)):
            die()
        return in_function

    sys.settrace(lambda frame, _event, _argument: in_function if frame.f_code is step.code else None)


def _arm_guard(key: str) -> None:
    """The guard that this process starts is one that dies."""
    start = process.start

    def started(argv: list[Any], **more: Any) -> Any:
        if "ktrdr_vm.egress.guard_main" in argv:
            argv = [sys.executable, "-P", "-s", __file__, "guard", "ktrdr_vm.egress.guard_main", key, argv[-1]]
        return start(argv, **more)

    process.start = started  # type: ignore[assignment]


# -- the verbs ---------------------------------------------------------------------------------------------------------


def _read_secret(_: object) -> bytes:
    return b"CANARY-of-the-crash-matrix"


class Crash:
    """An instance on the way to the step. One that sleeps was put there by the test, so that not every cell has to boot
    one."""

    def __init__(self, profile: Path, instance_id: str, cell: Cell) -> None:
        self.home, self.libvirt = find_home(), Libvirt()
        self.profile, self.cell = profile, cell
        self.instance = Instance(self.home, parse_instance_id(instance_id), self.libvirt)
        self.sleeps = self.instance.find_journal() is not None

    def create(self, *, forked: bool = False, whole: bool = True) -> None:
        """A machine that need not come up: what there is to be seen is on the host."""
        gathered = gather(
            self.profile, home=self.home, workspace=self.profile.parent, instance_id=self.instance.identity.instance_id
        )
        template = None
        if forked:
            image = ImageStore(self.home.images).find(gathered.plan.facts.image.digest)
            assert image is not None
            template = find_template(self.home, gathered.plan, image)
            assert template is not None, "the test builds it before"
        loaded = self.instance.create(gathered.plan, read_secret=_read_secret, mount_roots=(), template=template)
        if whole:
            self.complete(loaded)

    def complete(self, loaded: LoadedInstance) -> None:
        loaded.complete(read_secret=_read_secret, mount_roots=())

    def resume_suspended(self) -> LoadedInstance:
        loaded = self.instance.load()
        resume(loaded, read_secret=_read_secret)
        return loaded

    def apply(self) -> None:
        if not self.sleeps:
            arm(self.cell)
            self.create()
            return
        # An instance that is there is given its mounts and secrets by the same code as a new one.
        loaded = self.resume_suspended()
        remove_secrets(loaded)
        for resource in loaded.open_resources():
            if isinstance(resource, Mount):
                resource.detach()
        arm(self.cell)
        self.complete(loaded)

    def destroy(self) -> None:
        if not self.sleeps:
            self.create(whole=False)
        elif self.cell.step.name != "saved":
            self.resume_suspended()
        arm(self.cell)
        self.instance.destroy()

    def fork(self) -> None:
        arm(self.cell)
        self.create(forked=True)

    def branch(self) -> None:
        self.create(forked=True)
        loaded = self.instance.load()
        loaded.connect(limit=BOOT_LIMIT["tcg"])
        arm(self.cell)
        copy = parse_instance_id(f"{self.instance.identity.instance_id}-b")
        branch(loaded, [copy], HostInputs(_read_secret))

    def suspend(self) -> None:
        loaded = self.resume_suspended()
        arm(self.cell)
        suspend(loaded)

    def resume(self) -> None:
        arm(self.cell)
        self.resume_suspended()

    def grant(self) -> None:
        self.create(whole=False)
        loaded = self.instance.load()
        asked, _ = loaded.escalations.submit(parse_packet(PACKET))
        arm(self.cell)
        answers.approve(loaded, asked.id, OwnerPolicy(), reason="to see")

    def loan(self) -> None:
        loaded = self.resume_suspended()
        asked, _ = loaded.escalations.submit(parse_packet({**PACKET, "kind": "mount", "request": LOAN}))
        arm(self.cell)
        add_loan(loaded, asked.id, "mount", LOAN, OwnerPolicy(), seconds=600, reason="to see")
        remove_loan(loaded, asked.id, "mount")

    def granting(self) -> None:
        _arm_guard(self.cell.key)
        self.create(whole=False)
        loaded = self.instance.load()
        asked, _ = loaded.escalations.submit(parse_packet(PACKET))
        try:
            answers.approve(loaded, asked.id, OwnerPolicy(), reason="to see")
            answers.revoke_approval(loaded, asked.id, reason="to see its end")
        except Exception as error:  # the guard is dead, and this command with it
            print(error, file=sys.stderr)
            die()


def main() -> None:
    if sys.argv[1] == "guard":
        key, directory = sys.argv[3:]
        arm(all_cells()[key])
        sys.argv = [sys.argv[0], directory]
        guard_main.main()
        return
    profile, instance_id, key = sys.argv[1:]
    cell = all_cells()[key]
    crash = Crash(Path(profile), instance_id, cell)
    with crash.instance.locked():
        getattr(crash, cell.verb)()
    raise SystemExit("it did not die")


if __name__ == "__main__":
    main()
