"""Row 39 on real file systems: a state directory that is full, read-only, or fails at its n-th write. What was there
stays whole."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import namespaces
from laboratory.command import PROGRAM, run
from laboratory.lab import LAB_IMAGES, Lab
from laboratory.recorder import wait_until

from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.journal import read_journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.instance import Instance

# The daemons of a world, and the proxy, see no file system that is mounted in another mount namespace.
pytestmark = [pytest.mark.usefixtures("image"), pytest.mark.host_root]

PROFILE = "version: 1\nname: disk\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 512MiB, disk: 10GiB}\n"
_NUMBERS = itertools.count()


@pytest.fixture
def small(lab: Lab) -> Iterator[Callable[[int], Home]]:
    """Makes state directories on a file system of so many MiB, with the lab's images in them."""
    made: list[Home] = []

    def make(size: int) -> Home:
        place = lab.scratch / f"small{next(_NUMBERS)}"
        place.mkdir()
        namespaces.mount("lab", place, "tmpfs", namespaces.MS_NOSUID | namespaces.MS_NODEV, f"size={size}m,mode=0711")
        home = Home(place)
        made.append(home)
        home.create()
        namespaces.mount(str(LAB_IMAGES), home.images, flags=namespaces.MS_BIND)
        return home

    yield make
    for home in made:
        assert list(home.instances.iterdir()) == []
        for place in (home.images, home.root):
            subprocess.run(["umount", "-l", place], check=True, timeout=20)


class Made:
    """An instance in one of them, whose machine never comes up."""

    def __init__(self, lab: Lab, home: Home, libvirt: Libvirt, place: Path, purpose: str) -> None:
        (place / "disk.yaml").write_text(PROFILE)
        self.gathered = gather(place / "disk.yaml", home=home, workspace=place, instance_id=lab.new_id(purpose))
        self.instance = Instance(home, self.gathered.plan.identity, libvirt)
        self.id = self.gathered.plan.identity.instance_id

    def create(self) -> None:
        self.instance.create(self.gathered.plan, read_secret=lambda _: b"", mount_roots=())


def fill(home: Home, leave: int) -> Path:
    """Take all but so many bytes."""
    path = home.root / "filler"
    free = os.statvfs(home.root)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave))
    return path


def test_a_full_disk_at_any_moment_is_an_error_and_leaves_nothing(
    lab: Lab, libvirt: Libvirt, small: Callable[[int], Home], tmp_path: Path
) -> None:
    """So many bytes are left, from none to nearly enough; the clean-up has as few."""
    home = small(48)
    met = set()
    for number, left in enumerate((0, 4, 8, 16, 24, 36, 48, 64, 9000, 12000, 13000, 14000)):
        made = Made(lab, home, libvirt, tmp_path, f"full-{number}")
        filler = fill(home, left << 10)
        try:
            made.create()
        except KtrdrError as error:
            assert error.hint and "Traceback" not in str(error), str(error)
            met.add(error.where.rsplit("/", 1)[-1])
        journal = read_journal(made.instance.paths.journal)
        assert journal is None or journal.instance_id == made.id
        made.instance.destroy()
        assert made.instance.find_residue() == [] and not made.instance.paths.directory.exists()
        filler.unlink()
    assert len(met) > 3, f"the disk was full at too few places to say much: {met}"


def test_the_command_says_what_is_full(
    lab: Lab, libvirt: Libvirt, small: Callable[[int], Home], tmp_path: Path
) -> None:
    home = small(16)
    made = Made(lab, home, libvirt, tmp_path, "command")
    fill(home, 0)
    environment = {"KTRDR_VM_HOME": str(home.root)}
    said = run(lab, "apply", "disk.yaml", "--instance-id", made.id, cwd=tmp_path, environment=environment)
    assert said.code == 3, said.stderr
    assert "next:" in said.stderr and str(home.root) in said.stderr and "Traceback" not in said.stderr
    for words in (["list"], ["gc"], ["destroy", made.id]):
        said = run(lab, *words, environment=environment)
        assert said.code == 0 and "Traceback" not in said.stderr, (words, said.stderr)


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.full)])
def test_every_write_that_fails_leaves_the_state_of_before(
    call: str,
    stride: int,
    lab: Lab,
    libvirt: Libvirt,
    small: Callable[[int], Home],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The n-th sync, or renaming into place, fails with an input/output error; the one after it works again."""
    home = small(1500)  # The guard pauses a machine whose file system has less than DISK_LAST.
    holder: type[Path] | object = Path if call == "rename" else os
    real = getattr(holder, call)
    failures = 0
    for number in range(1, 200, stride):
        made = Made(lab, home, libvirt, tmp_path, f"{call}-{stride}-{number}")
        count, before = 0, None

        def fail(*words: object, number: int = number, made: Made = made) -> object:
            nonlocal count, before
            count += 1
            if count == number:
                before = made.instance.paths.journal.read_bytes() if made.instance.paths.journal.exists() else None
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*words)

        monkeypatch.setattr(holder, call, fail)
        try:
            made.create()
            done = True
        except KtrdrError as error:
            done = False
            failures += 1
            assert os.strerror(errno.EIO) in error.message and error.where and error.hint
        monkeypatch.undo()
        journal = made.instance.paths.journal
        found = journal.read_bytes() if journal.exists() else None
        if not done:
            # The old state or, where only the folder's names were not synced, the new one; never half of one.
            assert found == before or (found is not None and json.loads(found)["instance_id"] == made.id)
        made.instance.destroy()
        assert made.instance.find_residue() == [] and not made.instance.paths.directory.exists()
        if done:
            break
    assert done and failures >= 15 // stride


def test_a_read_only_state_is_said_and_nothing_is_lost(
    lab: Lab, libvirt: Libvirt, small: Callable[[int], Home], tmp_path: Path
) -> None:
    """A file system that the kernel has made read-only, as after an error: the machine of the instance runs on."""
    home = small(1500)
    made = Made(lab, home, libvirt, tmp_path, "read-only")
    made.create()
    before = made.instance.paths.journal.read_bytes()
    script = 'mount -o remount,bind,ro "$1" && shift && exec "$@"'
    try:
        for words, code in (
            (["list", "--json"], 0),
            (["apply", str(tmp_path / "disk.yaml"), "--instance-id", made.id], 3),
            (["suspend", made.id], 3),
            (["destroy", made.id], 3),
            (["gc"], 5),
        ):
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", script, "sh", str(home.root), *PROGRAM, *words],
                env={**lab.environment, "KTRDR_VM_HOME": str(home.root), "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == code and "Traceback" not in done.stderr, (
                words,
                done.returncode,
                done.stdout,
                done.stderr,
            )
            if code:
                assert "Read-only file system" in done.stderr + done.stdout, (words, done.stderr)
        assert made.instance.paths.journal.read_bytes() == before
        assert [row for row in made.instance.load().status() if row.differences or not row.exists] == []
    finally:
        made.instance.destroy()
    assert made.instance.find_residue() == []


def notes(instance: Instance) -> list[str]:
    rows = read_ledger(instance.paths.ledger, follow=False)
    return [row["message"] for row in rows if row.get("rule") == "space"]


def test_a_guest_stands_still_before_the_hosts_disk_is_full(
    lab: Lab, libvirt: Libvirt, small: Callable[[int], Home], tmp_path: Path
) -> None:
    """Row 27 seen from the host: whatever fills the disk, the guest writes no more while there is little left."""
    home = small(1500)
    made = Made(lab, home, libvirt, tmp_path, "space")
    made.create()
    try:
        assert DomainControl(made.instance.identity.domain).find_state() == "running"
        filler = fill(home, 900 << 20)
        wait_until(
            lambda: DomainControl(made.instance.identity.domain).find_state() == "paused", "the guest stands still", 30
        )
        time.sleep(2)
        assert DomainControl(made.instance.identity.domain).find_state() == "paused"
        filler.unlink()
        wait_until(
            lambda: DomainControl(made.instance.identity.domain).find_state() == "running", "the guest goes on", 30
        )
        wait_until(lambda: len(notes(made.instance)) == 2, "both are in the ledger", 10)
        assert "stands still" in notes(made.instance)[0] and "goes on" in notes(made.instance)[1]
    finally:
        made.instance.destroy()


def test_the_image_is_one_that_fits(image: Image) -> None:
    """What the sizes above are chosen for: an instance's own copies of kernel and initrd are most of what it writes at
    first."""
    assert image.kernel is not None and image.initrd is not None
    assert 8 << 20 < image.kernel.stat().st_size + image.initrd.stat().st_size < 40 << 20
