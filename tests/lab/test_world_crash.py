"""`kill -9` of each part of a world at each step of making and removing an instance: the command ends, `gc` leaves
nothing, and the world ends.

The crash matrix (test_crash.py) ends the command itself. What a world has besides is ended here, while the command
goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from laboratory import world_crash
from laboratory.cells import find_classes
from laboratory.person import Person
from laboratory.recorder import wait_until
from laboratory.without_root import copy_image, end_world, outside

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.store import Image

pytestmark = pytest.mark.host_root

PROFILE = "version: 1\nname: small\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 256MiB, disk: 4GiB}\n"
PARTS = ("world.root", "world.keeper", "libvirtd", "virtlogd", "pasta", "egress.guard")
# What every instance has; secrets and mounts are parts of the guest.
KINDS = [one.__name__.lower() for one in find_classes() if one.kind not in ("mount", "secret", "saved")]
# When a guard is surely there: made, beside disk, tap and VM in another thread, or not removed yet.
GUARDED = {("create", "guard"), *(("remove", kind) for kind in KINDS[KINDS.index("guard") + 1 :])}
CELLS = [
    (part, method, kind)
    for part, method, kind in itertools.product(PARTS, ("create", "remove"), KINDS)
    if part != "egress.guard" or (method, kind) in GUARDED
]
SAMPLE = {
    ("world.root", "create", "domain"), ("world.keeper", "create", "tap"), ("libvirtd", "create", "firewall"),
    ("virtlogd", "create", "overlay"), ("pasta", "remove", "domain"), ("egress.guard", "create", "guard"),
}  # fmt: skip


def test_the_sample_has_every_part_once() -> None:
    assert sorted(part for part, _, _ in SAMPLE) == sorted(PARTS) and set(CELLS) >= SAMPLE


@pytest.fixture(scope="module")
def owner(alice: Person, image: Image) -> Person:
    copy_image(alice, image)
    (alice.home / "small.yaml").write_text(PROFILE)
    return alice


@pytest.mark.parametrize(
    ("part", "method", "kind"),
    [pytest.param(*cell, id="-".join(cell), marks=() if cell in SAMPLE else pytest.mark.full) for cell in CELLS],
)
def test_a_world_that_loses_a_part_leaves_nothing(owner: Person, part: str, method: str, kind: str) -> None:
    program = [owner.python, PROJECT / world_crash.__file__, owner.home / "small.yaml", "small", method, kind]
    command = owner.start(program=[str(word) for word in program])
    try:
        wait_until(lambda: _is_stopped(command) or command.poll() is not None, "the command comes to its step", 120)
        assert command.poll() is None, command.communicate()
        os.kill(owner.find(part)[0], signal.SIGKILL)
        command.send_signal(signal.SIGCONT)
        _, said = command.communicate(timeout=240)
    finally:
        if command.poll() is None:
            command.kill()
            command.communicate()
    assert command.returncode in (0, 1) and "Traceback" not in said, said
    collected = owner.run("gc", "--json")
    assert collected.code == 0, collected.stderr
    assert [row for row in json.loads(collected.stdout) if row.get("action") == "failed"] == []
    assert json.loads(owner.run("list", "--json").stdout) == []
    assert list((owner.state / "instances").iterdir()) == []
    assert owner.find("qemu-system") == owner.find("egress.guard") == owner.find("haproxy") == []
    end_world(owner)
    assert outside(owner) == []


def _is_stopped(command: subprocess.Popen[str]) -> bool:
    """True if the process is stopped. `start` executes the program, so that it is this process."""
    return Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
