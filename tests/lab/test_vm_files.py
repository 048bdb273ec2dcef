"""Mounts and secrets of a running VM: rows 25, 26 and 31, with the guest's root against the host's bind."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import subprocess
import urllib.parse
from pathlib import Path

import pytest
from laboratory.command import run
from laboratory.instances import CANARY_VARIABLE, LabInstance
from laboratory.lab import Lab
from laboratory.recorder import wait_until

from ktrdr_vm.approvals.apply import deliver_secret
from ktrdr_vm.host.mounts import find_mounts
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.profile.model import Secret


def test_a_mount_is_read_and_never_written(instance: LabInstance) -> None:
    assert instance.shell("cat /data/input.txt") == (0, "from the host\n")
    for line in (
        "echo x > /data/new",
        "echo x >> /data/input.txt",
        "rm -f /data/input.txt",
        "mkdir /data/folder",
        "chmod 777 /data/input.txt",
        "chown 1:1 /data/input.txt",
        "mknod /data/device c 1 3",
        "ln -s /etc/shadow /data/link",
        "ln /data/input.txt /data/hard",
        "mv /data/input.txt /data/moved",
    ):
        code, said = instance.shell(line)
        assert code != 0, f"{line}: {said}"
    assert sorted(path.name for path in (instance.workspace / "shared").iterdir()) == ["input.txt"]
    assert (instance.workspace / "shared" / "input.txt").read_text() == "from the host\n"


def test_a_remount_in_the_guest_changes_nothing_on_the_host(instance: LabInstance) -> None:
    """Row 26. The guest may believe that it can write; the host's bind decides."""
    instance.shell("mount -o remount,rw,suid,dev /data; mkdir -p /mnt/again; mount -t virtiofs mount0 /mnt/again")
    for place in ("/data", "/mnt/again"):
        for line in (
            f"echo x > {place}/new",
            f"mknod {place}/device c 1 3",
            f"cp /bin/true {place}/su && chmod 4755 {place}/su",
        ):
            assert instance.shell(line)[0] != 0, line
    instance.shell("umount /mnt/again; mount -o remount,ro,nosuid,nodev /data")
    assert [path.name for path in (instance.workspace / "shared").iterdir()] == ["input.txt"]
    options = find_mounts(instance.instance.paths.mounts / "0")[-1].options
    assert {"ro", "nosuid", "nodev"} <= options


@pytest.mark.host_root  # where libvirtd can start virtiofsd
def test_with_a_writable_bind_the_same_write_gets_through(lab: Lab, instance: LabInstance) -> None:
    """The control: the same folder, exported once more from a bind that is not read-only."""
    shared, bind = instance.workspace / "shared", lab.scratch / "control"
    bind.mkdir()
    subprocess.run(["mount", "--bind", shared, bind], check=True, timeout=10)
    device = f"<filesystem type='mount' accessmode='passthrough'><driver type='virtiofs'/><source dir='{bind}'/><target dir='control'/></filesystem>"
    try:
        instance.instance.libvirt.attach(instance.instance.identity.domain, device)
        code, said = instance.shell(
            "mkdir -p /mnt/control && mount -t virtiofs control /mnt/control && echo x > /mnt/control/new"
        )
        assert code == 0, said
        assert (shared / "new").read_text() == "x\n"
        instance.shell("umount /mnt/control")
    finally:
        subprocess.run(["umount", "-l", bind], check=True, timeout=10)
        (shared / "new").unlink(missing_ok=True)


def test_a_bind_that_somebody_made_writable_is_noticed(instance: LabInstance) -> None:
    bind = instance.instance.paths.mounts / "0"

    def differences() -> tuple[str, ...]:
        return next(row.differences for row in instance.instance.load().status() if row.kind == "mount")

    assert differences() == ()
    subprocess.run(["mount", "-o", "remount,bind,rw,nosuid,nodev", bind], check=True, timeout=10)
    try:
        assert differences() == ("the bind is not ro",)
    finally:
        subprocess.run(["mount", "-o", "remount,bind,ro,nosuid,nodev", bind], check=True, timeout=10)


@pytest.mark.host_root  # who can make devices
def test_links_and_special_files_that_the_host_put_there_stay_the_guests_own(instance: LabInstance) -> None:
    """Row 25: a link resolves in the guest, a device does not open, a setuid file gives nothing."""
    shared = instance.workspace / "shared"
    (shared / "link").symlink_to("/etc/hostname")
    os.mknod(shared / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    try:
        assert instance.shell("cat /data/link")[1].strip() == instance.instance_id
        assert instance.shell("head -c 1 /data/zero")[0] != 0
    finally:
        (shared / "link").unlink()
        (shared / "zero").unlink()


@pytest.mark.parametrize(
    "source",
    [
        "../outside",
        "/etc",
        "~/x",
        "link",
        "link/inside",
        "shared/../../outside",
        ".git",
        "/proc/self/root/etc",
        "sub/.ssh",
    ],
)
def test_a_mount_from_elsewhere_is_refused(lab: Lab, instance: LabInstance, source: str) -> None:
    """Row 26, as `plan` says it. What it really is shows when it is opened, as the resource opens it."""
    place = lab.scratch / "mounting"
    (place / "shared").mkdir(parents=True, exist_ok=True)
    (lab.scratch / "outside" / "inside").mkdir(parents=True, exist_ok=True)
    if not (place / "link").is_symlink():
        (place / "link").symlink_to("../outside")
    profile = place / "p.yaml"
    profile.write_text(
        f"version: 1\nname: m\nimage: debian-13-docker\nmounts: [{{source: {source!r}, target: /data}}]\n"
    )
    ended = run(lab, "plan", profile, "--workspace", place, "--instance-id", "lab-mounting")
    assert ended.code == 2, ended.stdout
    assert "mounts" in ended.stderr


def test_the_secret_is_in_the_guests_memory_and_nowhere_else(lab: Lab, instance: LabInstance) -> None:
    """Row 31, while the VM runs: every file of the instance, argv and environment of every process, the domain, the
    seed."""
    forms = [instance.canary, base64.b64encode(instance.canary), urllib.parse.quote(instance.canary.decode()).encode()]
    assert instance.guest.run(["cat", "/run/secrets/canary"], timeout=20).stdout == instance.canary
    assert instance.shell("findmnt -no FSTYPE /run/secrets")[1].strip() == "tmpfs"
    assert instance.shell("stat -c '%a %U' /run/secrets/canary")[1].split() == [
        "400",
        instance.gathered.plan.facts.image.user,
    ]
    instance.shell("sync")
    found = []
    for root in (
        lab.home.instances,
        lab.home.runs,
        lab.home.locks,
        Path("/run/libvirt"),
        Path("/var/lib/libvirt"),
        Path("/var/log/libvirt"),
    ):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                found += [
                    str(path)
                    for form in forms
                    if subprocess.run(["grep", "-qaF", "--", form, path], timeout=120).returncode == 0
                ]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for name in ("cmdline", "environ"):
                try:
                    content = (entry / name).read_bytes()
                except OSError:
                    continue
                found += [str(entry / name) for form in forms if form in content]
    assert found == []
    described = instance.instance.libvirt.describe(instance.instance.identity.domain).encode()
    assert not any(form in described for form in forms)
    _, said = instance.shell(
        'grep -rlaF "$(cat /run/secrets/canary)" /etc /var/lib/cloud /home /root /var/log /tmp 2>/dev/null'
    )
    assert said == "", f"in the guest: {said}"


def test_a_canary_in_the_overlay_would_be_found(lab: Lab, instance: LabInstance) -> None:
    """The control of the search: what the guest itself writes to its disk is found there."""
    mark = "MARK-" + os.urandom(8).hex()
    instance.shell(f"printf %s {mark[:10]} > /root/mark; printf %s {mark[10:]} >> /root/mark; sync /root/mark; sync")
    assert subprocess.run(["grep", "-qaF", mark, instance.instance.paths.overlay], timeout=120).returncode == 0


def test_a_secret_is_renewed_and_taken_back(lab: Lab, instance: LabInstance) -> None:
    """From its source again, which may be another value by then; at the end it is what the other tests know."""
    old = {CANARY_VARIABLE: instance.canary.decode()}
    listed = run(lab, "secrets", "list", instance.instance_id, "--json", environment=old)
    assert json.loads(listed.stdout) == [
        {"name": "canary", "path": "/run/secrets/canary", "seconds": 3600, "host": "", "present": True}
    ]
    assert (
        run(
            lab, "secrets", "rotate", instance.instance_id, "canary", environment={CANARY_VARIABLE: "a-newer-value"}
        ).code
        == 0
    )
    assert instance.guest.run(["cat", "/run/secrets/canary"], timeout=20).stdout == b"a-newer-value"
    assert run(lab, "secrets", "revoke", instance.instance_id, environment=old).code == 0
    assert instance.shell("ls /run/secrets")[1] == ""
    assert "no secret" in run(lab, "secrets", "rotate", instance.instance_id, "another", environment=old).stderr
    assert run(lab, "secrets", "rotate", instance.instance_id, environment=old).code == 0
    assert instance.guest.run(["cat", "/run/secrets/canary"], timeout=20).stdout == instance.canary


def test_the_guard_ends_a_secret_that_the_guest_would_keep(
    instance: LabInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command runs, and root in the guest has stopped its own timer. Without the guard's clock the file would
    stay."""
    monkeypatch.setenv("KTRDR_SHORT", "CANARY-short-lived")
    deliver_secret(instance.loaded, Secret("short", "/run/secrets/short", env="KTRDR_SHORT", ttl=5))
    code, said = instance.shell("systemctl stop ktrdr-secret-short.timer; cat /run/secrets/short")
    assert (code, said) == (0, "CANARY-short-lived")
    wait_until(lambda: instance.ledger(rule="secret", name="short"), "the ledger says that it ended", 60)
    assert instance.shell("test -e /run/secrets/short")[0] == 1
    assert "removed from the guest" in instance.ledger(rule="secret", name="short")[0]["message"]


def test_nothing_that_instances_share_belongs_to_qemus_user(instance: LabInstance) -> None:
    """libvirt gives what a machine boots from to QEMU's user while it runs. With the image's own kernel in the domain
    this fails."""
    image = Path(instance.gathered.plan.facts.image.directory)
    assert {path.name: path.stat().st_uid for path in image.iterdir()} == dict.fromkeys(
        (path.name for path in image.iterdir()), 0
    )
    booted = (Path("/proc") / str(find_qemu(instance.instance.identity.domain)[0]) / "cmdline").read_bytes()
    assert (
        str(image / "vmlinuz").encode() not in booted
        and str(instance.instance.paths.directory / "vmlinuz").encode() in booted
    )


def test_another_local_user_opens_only_what_the_table_says(lab: Lab, instance: LabInstance) -> None:
    """Row 43 for files: each name of the state is known to them, as `ps` shows ids and keys."""
    from ktrdr_vm.host.rights import find_open, find_right

    home = lab.home
    paths = [
        path
        for path in home.root.rglob("*")
        if not {"images", "scratch", "session.lock"} & set(path.parts) and not path.is_symlink()
    ]
    bound = [path for path in paths if "mounts" in path.parts]
    assert bound and any(path.name == "proxy.cfg" for path in paths)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        opened = []
        for number, path in enumerate(paths):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                opened.append(str(number))
        os.write(writing, " ".join(opened).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read().split()
    os.waitpid(pid, 0)
    surprising = [str(paths[int(one)]) for one in said if not find_right(paths[int(one)], home.root).mode & 0o004]
    assert surprising == [] and not set(map(str, bound)) & {str(paths[int(one)]) for one in said}
    assert find_open(home.root, home.instances) == []
