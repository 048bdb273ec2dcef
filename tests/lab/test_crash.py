"""`kill -9` at every step of every verb, then `gc`, then the host compared with what it was.

The matrix is generated (laboratory/cells.py), so a new kind of resource, and a new step of a verb, is in it by itself.
A fixed sample that has every resource once is part of every run; the whole of it is marked `full` and is what `make
crash` runs.

Every cell is real and as small as can be: a machine that only the host is asked about never finishes booting, and one
that has to answer is woken from a copy of one that was booted once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import crash
from laboratory.cells import Cell, all_cells, find_classes
from laboratory.instances import make_workspace
from laboratory.inventory import take_inventory
from laboratory.lab import Lab

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.garbage import collect_garbage
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.suspend import suspend
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

SECRETS = """\
secrets:
  - {name: given, source: {env: KTRDR_CRASH}}
  - name: brokered
    source: {env: KTRDR_CRASH}
    broker: {host: allowed.test.lab, header: "x-api-key: {{ secret }}", base_url_env: URL, methods: [GET], paths: ["/"]}
"""
MOUNTS = "mounts: [{source: ./shared, target: /data}]\n"
SMALL = "version: 1\nname: crash\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 512MiB, disk: 10GiB}\n"
# The shape that other tests fork as well.
USUAL = "version: 1\nname: crash\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"
PROFILES = {
    "small.yaml": SMALL + SECRETS + MOUNTS,
    "forked.yaml": USUAL,
    "branched.yaml": USUAL + SECRETS,
    "sleeper.yaml": USUAL.replace("name: crash", "name: sleeper\nmode: interactive") + SECRETS + MOUNTS,
}
LIMIT = 300

# Every resource once, and every verb.
SAMPLE = (
    "apply-namespace-after", "apply-overlay-inside", "apply-seed-after", "destroy-firewall-before", "apply-guard-after", "apply-tap-inside",
    "destroy-domain-after", "apply-mount-inside", "resume-secret-inside", "apply-brokeredsecret-before", "suspend-saved-inside",
    "fork-create.10.finish-inside", "branch-create.7.create-inside", "grant-apply.0.grant-inside", "granting-grant.1.add-after",
    "loan-add_loan.1.create-inside",
)  # fmt: skip
CELLS = all_cells()
GOLDEN = PROJECT / "tests/golden/expected/outside/crash-cells.txt"


def test_the_matrix_is_the_one_that_is_written_down() -> None:
    """Cells are found by the names of functions: a rename must not make the matrix smaller without a word.

    After a wanted change: KTRDR_GOLDEN=write, then read the diff.
    """
    text = "\n".join(CELLS) + "\n"
    if os.environ.get("KTRDR_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_sample_has_every_resource_once_and_every_verb() -> None:
    cells = [CELLS[key] for key in SAMPLE]
    named = [cell.step.name for cell in cells if cell.step.owner is not None]
    assert sorted(named) == sorted(one.__name__.lower() for one in find_classes())
    assert {cell.verb for cell in cells} == {cell.verb for cell in CELLS.values()}


def _needs_suspended(cell: Cell) -> bool:
    """True if its step needs a VM that was booted and has its secrets: one that is resumed from a copy."""
    kind = cell.step.owner.kind if cell.step.owner is not None else ""  # type: ignore[attr-defined]
    if cell.verb == "apply":
        # Up to the device a mount is made on the host alone, and so is what the guard is given.
        return kind == "secret" or (kind == "mount" and cell.when == "after")
    return cell.verb in ("suspend", "resume", "loan") or (cell.verb == "destroy" and kind in ("mount", "saved"))


@pytest.fixture(scope="module")
def workspace(lab: Lab) -> Path:
    place = lab.scratch / "crash"
    place.mkdir()
    make_workspace(place)
    for name, text in PROFILES.items():
        (place / name).write_text(text)
    return place


@pytest.fixture(scope="module")
def sleeper(lab: Lab, image: Image, libvirt: Libvirt, workspace: Path) -> Iterator[Callable[[], str]]:
    """Restores the files of an instance that was suspended once; returns its instance_id."""
    suspended: list[tuple[str, Path]] = []

    def put_back() -> str:
        if not suspended:
            suspended.append(_suspend(lab, image, libvirt, workspace / "sleeper.yaml"))
        [(instance_id, copy)] = suspended
        # As it lies there: sparse files stay sparse.
        subprocess.run(
            ["cp", "-a", "--sparse=always", copy, lab.home.instance(instance_id).directory], check=True, timeout=120
        )
        return instance_id

    yield put_back
    for _, copy in suspended:
        shutil.rmtree(copy)


def _suspend(lab: Lab, image: Image, libvirt: Libvirt, profile: Path) -> tuple[str, Path]:
    gathered = gather(profile, home=lab.home, workspace=profile.parent, instance_id=lab.new_id(f"crash-{profile.stem}"))
    plan = gathered.plan
    instance = Instance(lab.home, plan.identity, libvirt)
    template = find_template(lab.home, plan, image) or build_template(lab.home, plan, image, libvirt, progress=print)
    with instance.locked():
        loaded = instance.create(plan, read_secret=lambda _: b"value", mount_roots=(), template=template)
        loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
        loaded.complete(read_secret=lambda _: b"value", mount_roots=())
        suspend(loaded)
        copy = lab.scratch / f"suspended-{profile.stem}"
        subprocess.run(["cp", "-a", "--sparse=always", instance.paths.directory, copy], check=True, timeout=120)
        instance.destroy()
    return plan.identity.instance_id, copy


@pytest.mark.parametrize("key", [pytest.param(key, marks=() if key in SAMPLE else pytest.mark.full) for key in CELLS])
def test_gc_leaves_nothing_whenever_it_dies(
    key: str, lab: Lab, image: Image, libvirt: Libvirt, workspace: Path, sleeper: Callable[[], str]
) -> None:
    cell = CELLS[key]
    before = take_inventory(lab, libvirt)
    profile = workspace / "small.yaml"
    if cell.verb in ("fork", "branch"):
        profile = workspace / ("forked.yaml" if cell.verb == "fork" else "branched.yaml")
        plan = gather(profile, home=lab.home, workspace=workspace, instance_id="x").plan
        if find_template(lab.home, plan, image) is None:
            build_template(lab.home, plan, image, libvirt, progress=print)
    instance_id = sleeper() if _needs_suspended(cell) else lab.new_id(f"crash-{list(CELLS).index(key)}")
    died = subprocess.run(
        [sys.executable, crash.__file__, str(profile), instance_id, key],
        env={**lab.environment, "KTRDR_CRASH": "value", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    if cell.verb == "apply" and cell.when == "after":
        assert take_inventory(lab, libvirt) != before, "the comparison would see nothing"
    rows = collect_garbage(lab.home, libvirt, dry_run=False)
    for name in (instance_id, f"{instance_id}-b"):
        if not lab.home.instance(name).directory.exists():
            continue
        # What a person lives in stays, and can be taken up again, until its time to live ends.
        instance = Instance(lab.home, parse_instance_id(name), libvirt)
        journal = instance.require_journal()
        assert instance.is_kept() and (
            _needs_suspended(cell) or (cell.step.name.endswith(".keep") and name != instance_id)
        ), f"gc left it: {rows}"
        journal.live_for(-1)
        journal.save()
        rows += collect_garbage(lab.home, libvirt, dry_run=False)
    assert [row for row in rows if row["action"] == "failed"] == []
    # A lock's file outlives a killed process and holds nobody; the next who takes the lock, as gc did, removes it.
    assert take_inventory(lab, libvirt) == before
