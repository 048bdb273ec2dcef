"""`kill -9` at every step of making and removing an instance, then `gc`, then the host compared with what it was.

The matrix is generated from the resource tuple, so a new kind of resource is in it by itself. A fixed sample that has every resource
once is part of every run; the whole of it is marked `full` and is what `make crash` runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from laboratory import crash
from laboratory.instances import make_workspace
from laboratory.inventory import take_inventory
from laboratory.lab import Lab

from ktrdr_vm.discovery import collect_garbage
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image
from ktrdr_vm.plan.identity import parse_instance_id
from ktrdr_vm.resources import make_resources
from ktrdr_vm.resources.base import Target

PROFILE = "version: 1\nname: crash\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"
# A template may have to be built first.
LIMIT = 900

_HOME = Home(Path("/nonexistent"))
KINDS = [resource.kind for resource in make_resources(Target(parse_instance_id("x"), _HOME.instance("x"), Libvirt()), None)]
CELLS = [(verb, kind, when) for verb in ("create", "remove") for kind in KINDS for when in ("before", "inside", "after")]
# Every resource once, both verbs and all three moments among them.
SAMPLE = {
    ("create", "overlay", "inside"), ("create", "seed", "after"), ("remove", "firewall", "before"), ("create", "guard", "after"),
    ("create", "tap", "inside"), ("remove", "domain", "after"),
}  # fmt: skip


def test_the_sample_has_every_resource_once():
    assert sorted(kind for _, kind, _ in SAMPLE) == sorted(KINDS)
    assert set(CELLS) >= SAMPLE


@pytest.mark.vm
@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=() if cell in SAMPLE else pytest.mark.full, id="-".join(cell)) for cell in CELLS]
)
def test_gc_leaves_nothing_whenever_a_run_dies(
    cell: tuple[str, str, str], lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    verb, kind, when = cell
    workspace = make_workspace(tmp_path)
    (workspace / "crash.yaml").write_text(PROFILE)
    instance_id = lab.new_id("crash")
    before = take_inventory(lab, libvirt)
    died = subprocess.run(
        [sys.executable, crash.__file__, str(workspace / "crash.yaml"), str(workspace), instance_id, verb, kind, when],
        env={**os.environ, "KTRDR_VM_HOME": str(lab.home.root), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    rows = collect_garbage(lab.home, libvirt, dry_run=False)
    assert [row for row in rows if row["action"] == "failed"] == []
    # A lock's file outlives a killed process and holds nobody; the next who takes the lock, as gc did, removes it.
    assert take_inventory(lab, libvirt) == before
