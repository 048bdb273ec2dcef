"""What the host may do to an instance: daemons that are restarted, a reboot, QEMU killed, an image deleted, another
user. Rows 20, 27, 42."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import namespaces
from laboratory.command import PROGRAM, assert_nothing_left, run, start
from laboratory.daemons import restart_daemons
from laboratory.lab import Lab
from laboratory.recorder import wait_until

from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.garbage import collect_garbage
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.inventory import find_instances
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.instance.suspend import resume
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

pytestmark = pytest.mark.usefixtures("image")

SMALL = "version: 1\nname: faults\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 512MiB, disk: 10GiB}\n"
USUAL = "version: 1\nname: faults\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"


def write_gate(place: Path, name: str, command: str) -> str:
    task = f"    - name: it works\n      ansible.builtin.shell: {{cmd: {json.dumps(command)}}}\n      become: true\n"
    (place / f"{name}.yaml").write_text(f"- name: {name}\n  hosts: all\n  tasks:\n{task}")
    return f"./{name}.yaml"


def write_profile(place: Path, *gates: str) -> Path:
    (place / "profile.yaml").write_text(f"{USUAL}gates: [{', '.join(gates)}]\n")
    return place


@pytest.fixture
def cold(lab: Lab, libvirt: Libvirt, tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Instances whose machines never come up: what is looked at is on the host."""
    made: list[Instance] = []

    def make(purpose: str, extra: str = "") -> Instance:
        (tmp_path / f"{purpose}.yaml").write_text(SMALL + extra)
        gathered = gather(
            tmp_path / f"{purpose}.yaml", home=lab.home, workspace=tmp_path, instance_id=lab.new_id(purpose)
        )
        instance = Instance(lab.home, gathered.plan.identity, libvirt)
        made.append(instance)
        instance.create(gathered.plan, read_secret=lambda _: b"", mount_roots=())
        return instance

    yield make
    for instance in made:
        with instance.locked():
            instance.destroy()


# -- while a run goes on -----------------------------------------------------------------------------------------------


def test_restarted_daemons_are_picked_up_and_a_killed_machine_is_noticed_at_once(lab: Lab, tmp_path: Path) -> None:
    """Row 20. The second gate begins with the rules verified; the third one's machine is killed under it."""
    gates = [
        write_gate(tmp_path, "first", "sleep 8"),
        write_gate(tmp_path, "second", "true"),
        write_gate(tmp_path, "third", "sleep 900"),
    ]
    instance_id = lab.new_id("restarted")
    place = write_profile(tmp_path, *gates)
    started = start(lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, "--json", cwd=place)
    wait_until(
        lambda: "gate first" in started.phases() or started.process.poll() is not None, "the first gate runs", 900
    )
    restart_daemons(lab.scratch, away=2)
    wait_until(
        lambda: "gate third" in started.phases() or started.process.poll() is not None, "the third gate runs", 300
    )
    [qemu] = find_qemu(f"ktrdr-{instance_id}")
    killed = time.monotonic()
    os.kill(qemu, signal.SIGKILL)
    ended = started.wait(300)
    assert time.monotonic() - killed < 100
    assert ended.code == 1, ended.stderr
    outcomes = {gate["name"]: gate["outcome"] for gate in ended.report["gates"]}
    assert outcomes == {"first": "passed", "second": "passed", "third": "error"}
    assert "its VM has ended" in ended.report["gates"][2]["message"]
    assert ended.report["residue"] == []
    assert_nothing_left(lab, instance_id)


@pytest.mark.full
@pytest.mark.parametrize("how", ["panicked", "hung"])
def test_a_guest_that_answers_no_more_ends_its_run_with_the_reason(
    how: str, lab: Lab, libvirt: Libvirt, tmp_path: Path
) -> None:
    command = (
        "echo 1 > /proc/sys/kernel/sysrq; sleep 2; echo c > /proc/sysrq-trigger" if how == "panicked" else "sleep 900"
    )
    instance_id = lab.new_id(how)
    place = write_profile(tmp_path, write_gate(tmp_path, "lost", command))
    started = start(lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, "--json", cwd=place)
    wait_until(lambda: "gate lost" in started.phases() or started.process.poll() is not None, "the gate runs", 900)
    if how == "hung":
        libvirt.suspend(f"ktrdr-{instance_id}")
    ended = started.wait(400)
    assert ended.code == 1 and ended.report["gates"][0]["outcome"] == "error", ended.stderr
    message = ended.report["gates"][0]["message"]
    assert ("Kernel panic" if how == "panicked" else "is paused") in message, message
    assert ended.report["residue"] == []
    assert_nothing_left(lab, instance_id)


@pytest.mark.full
def test_libvirtd_that_is_restarted_while_a_machine_boots(lab: Lab, tmp_path: Path) -> None:
    instance_id = lab.new_id("mid-boot")
    place = write_profile(tmp_path, write_gate(tmp_path, "first", "true"))
    started = start(
        lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, "--json", "--cold", cwd=place
    )
    wait_until(lambda: "boot" in started.phases() or started.process.poll() is not None, "it boots", 300)
    restart_daemons(lab.scratch, away=5)
    ended = started.wait(900)
    assert (ended.code, ended.report["outcome"], ended.report["residue"]) == (0, "passed", []), ended.stderr
    assert_nothing_left(lab, instance_id)


# -- the host ends and comes back --------------------------------------------------------------------------------------


def reboot(lab: Lab, *instances: Instance) -> None:
    """What of them does not outlive the host: processes, namespaces, tables, and all that daemons keep beneath /run."""
    for instance in instances:
        for pid in (*find_qemu(instance.identity.domain), *find_guards(instance.paths.guard)):
            os.kill(pid, signal.SIGKILL)
        for argv in (
            ["ip", "netns", "del", instance.identity.namespace],
            ["nft", "delete", "table", "inet", instance.identity.table],
        ):
            subprocess.run(argv, check=True, capture_output=True, timeout=20)
    restart_daemons(lab.scratch, rebooted=True)


def test_after_a_reboot_everything_says_what_is_and_gc_takes_what_is_disposable(
    lab: Lab, libvirt: Libvirt, cold: Callable[..., Instance]
) -> None:
    sandbox, person = cold("sandbox"), cold("person", "mode: interactive\n")
    disk = person.paths.overlay.stat().st_ino
    reboot(lab, sandbox, person)
    found = {one.instance_id: one for one in find_instances(lab.home, libvirt)}
    assert found[sandbox.identity.instance_id].note == "incomplete: no namespace, no firewall, no tap, no domain"
    assert (found[person.identity.instance_id].state, found[person.identity.instance_id].kept) == ("shutoff", True)
    status = run(lab, "status", person.identity.instance_id)
    assert status.code == 4 and "missing  firewall" in status.stdout and "it is shutoff" in status.stdout, status.stdout
    with pytest.raises(UsageError, match="its VM has ended"):
        resume(person.load(), read_secret=lambda _: b"")
    rows = collect_garbage(lab.home, libvirt, dry_run=False)
    assert [row["instance_id"] for row in rows] == [sandbox.identity.instance_id] and rows[0]["action"] == "removed"
    assert sandbox.find_residue() == []
    # The next apply makes what is missing, on the same disk.
    person.create(person.load().plan, read_secret=lambda _: b"", mount_roots=())
    assert [row for row in person.load().status() if row.differences or not row.exists] == []
    assert person.paths.overlay.stat().st_ino == disk


def test_an_image_that_is_deleted_under_a_machine_is_said_and_stops_no_end(
    lab: Lab, libvirt: Libvirt, cold: Callable[..., Instance]
) -> None:
    instance = cold("deleted")
    image = Path(instance.load().plan.facts.image.directory)
    namespaces.hide(str(image))
    try:
        assert DomainControl(instance.identity.domain).find_state() == "running"
        differences = {row.kind: row.differences for row in instance.load().status() if row.differences}
        assert list(differences) == ["overlay"] and "its backing file is missing" in differences["overlay"][0]
        instance.destroy()
    finally:
        subprocess.run(["umount", image], check=True, timeout=20)
    assert instance.find_residue() == []


def test_a_state_that_says_running_and_a_machine_that_is_gone(
    lab: Lab, libvirt: Libvirt, cold: Callable[..., Instance]
) -> None:
    """Row 42: a disposable machine that ended is forgotten by libvirt; its rules and its guard still stand."""
    instance = cold("vanished")
    [qemu] = find_qemu(instance.identity.domain)
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: libvirt.find(instance.identity.domain) is None, "libvirt has noticed", 30)
    [found] = [one for one in find_instances(lab.home, libvirt) if one.instance_id == instance.identity.instance_id]
    assert (found.state, found.note) == ("no domain", "incomplete: no domain")
    assert {row.kind for row in instance.load().status() if not row.exists} == {"domain"}
    collect_garbage(lab.home, libvirt, dry_run=False)
    assert instance.find_residue() == [] and not instance.paths.directory.exists()


def test_a_connection_from_the_host_ends_with_the_instance(cold: Callable[..., Instance]) -> None:
    """Such as `ktrdr-vm ssh`: it hears of the end at once, and no socket keeps the namespace."""
    instance = cold("flows")
    instance.load().connect(limit=BOOT_LIMIT["tcg"])
    proxy = subprocess.Popen(
        [str(PROGRAM[0]), *PROGRAM[1:], "proxy", instance.identity.instance_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert proxy.stdout is not None
    assert proxy.stdout.readline().startswith(b"SSH-2.0-")
    there = os.stat(Path("/run/netns", instance.identity.namespace)).st_ino
    instance.destroy()
    assert proxy.wait(timeout=10) == 0
    assert (
        str(there)
        not in subprocess.run(
            ["lsns", "-t", "net", "-n", "-o", "NS"], capture_output=True, text=True, timeout=20
        ).stdout.split()
    )


# -- another user ------------------------------------------------------------------------------------------------------


def test_another_user_reads_nothing_and_is_told_so(lab: Lab, cold: Callable[..., Instance]) -> None:
    instance = cold("private")
    readable = {
        str(path.relative_to(instance.paths.directory))
        for path in instance.paths.directory.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o007
    }
    # Its own copies of a public kernel, and what the proxy's user reads; nobody else may even list the folders.
    assert {name for name in readable if not name.startswith("guard/")} == {"vmlinuz", "initrd"}
    assert {name for name in readable if name.startswith("guard/")} <= {"guard/proxy.cfg"} | {
        f"guard/{kind}.{names}"
        for kind in ("http", "tls")
        for names in ("names", "suffixes", "granted", "granted_suffixes")
    } | {"guard/given.addresses", "guard/broker.values", "guard/broker.open"}
    for folder in (lab.home.root, lab.home.instances, lab.home.locks, lab.home.runs, instance.paths.directory):
        assert folder.stat().st_mode & 0o004 == 0, folder
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if (
        subprocess.run(
            [*nobody, sys.executable, "-c", "import ktrdr_vm.cli.main"], capture_output=True, cwd="/"
        ).returncode
        != 0
    ):
        pytest.skip("another user cannot read this checkout")
    for words in (
        ["list"],
        ["status", instance.identity.instance_id],
        ["gc"],
        ["destroy", instance.identity.instance_id],
    ):
        said = subprocess.run(
            [*nobody, *PROGRAM, *words],
            env=lab.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )
        assert said.returncode == 3 and "next:" in said.stderr and "Traceback" not in said.stderr, (
            words,
            said.returncode,
            said.stderr,
        )
    assert [row for row in instance.load().status() if row.differences or not row.exists] == []


# -- a guest that takes all it can -------------------------------------------------------------------------------------


@pytest.mark.full
def test_what_a_guest_takes_is_bounded_and_its_sibling_is_served(
    lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    """Row 27: its disk, processes without end, its console, its memory. 2 GiB of each that is written or printed."""
    (tmp_path / "profile.yaml").write_text(USUAL)
    made: list[Instance] = []
    entered: list[LoadedInstance] = []
    try:
        for name in ("greedy", "sibling"):
            gathered = gather(
                tmp_path / "profile.yaml", home=lab.home, workspace=tmp_path, instance_id=lab.new_id(name)
            )
            plan = gathered.plan
            template = find_template(lab.home, plan, image) or build_template(
                lab.home, plan, image, libvirt, progress=print
            )
            instance = Instance(lab.home, plan.identity, libvirt)
            made.append(instance)
            with instance.locked():
                entered.append(instance.create(plan, read_secret=lambda _: b"", mount_roots=(), template=template))
            entered[-1].connect(limit=300)
        greedy, sibling = entered
        for line in (
            "systemd-run --quiet sh -c 'yes all work and no play > /dev/ttyS0'",
            "systemd-run --quiet sh -c 'yes > /fill'",
            "systemd-run --quiet tail /dev/zero",
            "systemd-run --quiet -p TasksMax=infinity sh -c 'f() { f | f & }; f'",
        ):
            greedy.connect().run(line, become=True, timeout=120)
        end = time.monotonic() + 40
        while time.monotonic() < end:
            answered = sibling.connect().run(["echo", "here"], timeout=60)
            assert answered.stdout == b"here\n"
            [qemu] = find_qemu(greedy.identity.domain)
            status = Path(f"/proc/{qemu}/status").read_text()
            resident = next(int(text.split()[1]) >> 10 for text in status.splitlines() if text.startswith("VmRSS"))
            assert resident < 2048 + 512, f"QEMU has {resident} MiB"
            logs = sum(path.stat().st_size for path in greedy.paths.directory.glob("console.log*"))
            assert logs < 16 << 20, f"the console has taken {logs >> 20} MiB"
            assert greedy.paths.overlay.stat().st_blocks * 512 < (10 << 30) + (64 << 20)
            time.sleep(1)
    finally:
        for instance in made:
            with instance.locked():
                instance.destroy()
    assert [one.find_residue() for one in made] == [[], []]
