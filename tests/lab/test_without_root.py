"""The program without root: a person with subordinate ids, in a world of their own, beside another person and beside
root."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.command import Ended
from laboratory.person import Person
from laboratory.recorder import wait_until
from laboratory.without_root import end_world, links, outside

pytestmark = pytest.mark.host_root

# In the world like a guard: without the lock of a command. Its last word is seen only once it is in it.
_STAY = (
    "from ktrdr_vm import enter_world; enter_world(); import os, sys; "
    'os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "is-" + "in-it"])'
)


def test_a_world_is_made_serves_and_ends_without_a_trace(alice: Person) -> None:
    before = links()
    listed = alice.run("list", "--json")
    assert (listed.code, json.loads(listed.stdout)) == (0, []), listed.stderr
    assert {"world.keeper", "world.root", "libvirtd", "virtlogd", "pasta"} <= {
        name for name in ("world.keeper", "world.root", "libvirtd", "virtlogd", "pasta") if alice.find(name)
    }
    assert links() == before
    end_world(alice)
    assert outside(alice) == []


def test_what_the_daemons_and_pasta_see(alice: Person) -> None:
    """QEMU is started by libvirtd, in its view: of the home only the state directory, and no device that it does not
    use. pasta has an empty root, and the kernel filters its system calls."""
    assert alice.run("list").code == 0
    try:
        for part in ("libvirtd", "virtlogd"):
            (pid,) = alice.find(part)
            assert os.listdir(f"/proc/{pid}/root{alice.home}") == [".local"]
            seen = set(os.listdir(f"/proc/{pid}/root/dev"))
            own = {"fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "hugepages"}
            assert seen - own <= {"null", "zero", "full", "random", "urandom", "tty", "net", "vhost-net", "kvm"}
            assert os.listdir(f"/proc/{pid}/root/dev/net") == ["tun"]
        (pasta,) = alice.find("pasta")
        facts = dict(line.split(":\t", 1) for line in Path(f"/proc/{pasta}/status").read_text().splitlines())
        assert facts["Seccomp"].startswith("2") and os.listdir(f"/proc/{pasta}/root") == []
        assert facts["Uid"].split() == [str(alice.uid)] * 4
    finally:
        end_world(alice)


def test_what_was_killed_is_there_again_after_the_next_command(alice: Person) -> None:
    assert alice.run("list").code == 0
    for part in ("world.root", "world.keeper", "libvirtd", "virtlogd"):
        # All of a world at once belong to the keeper; a daemon is a process of its own.
        os.kill(alice.find(part)[0], signal.SIGKILL)
        ended = alice.run("list")
        assert ended.code == 0, (part, ended.stderr)
        wait_until(functools.partial(alice.find, part), f"{part} is there again", 30)
    (pasta,) = alice.find("pasta")
    os.kill(pasta, signal.SIGKILL)
    wait_until(lambda: [pid for pid in alice.find("pasta") if pid != pasta], "pasta is there again", 30)
    end_world(alice)


def test_a_world_reaps_its_daemons_and_what_they_leave(alice: Person) -> None:
    """The first process of a container often reaps nothing. A killed QEMU was still there for libvirt then, which could
    not stop its domain."""
    assert alice.run("list").code == 0
    (daemon,) = alice.find("libvirtd")
    assert parent_of(daemon) in alice.find("world.root")
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon is reaped", 30)
    wait_until(lambda: alice.find("libvirtd"), "it is there again", 30)
    end_world(alice)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_world_without_its_supervisor_is_taken_up_and_not_forgotten(alice: Person) -> None:
    """What runs in it would otherwise be out of reach, beside a second world."""
    assert alice.run("list").code == 0
    record = alice.world / "world.json"
    before = json.loads(record.read_text())
    guard = alice.start(program=["/bin/sh", "-c", f"exec {alice.python} -c '{_STAY}'"])
    wait_until(lambda: alice.find("is-in-it"), "somebody is in the world", 30)
    os.kill(alice.find("world.root")[-1], signal.SIGKILL)
    wait_until(lambda: not alice.find("world.keeper"), "the keeper ended", 30)
    assert alice.run("list").code == 0
    assert json.loads(record.read_text())["user_namespace"] == before["user_namespace"]
    guard.kill()
    guard.communicate()
    end_world(alice)


# A root of its own without systemd, as of a container or a CI image: folders of the host in a place, and `%s` enters it.
_BARE = """set -e
mount --make-rprivate /
chmod 755 "$1"
mount --bind "$1" "$1"
cd "$1"
for folder in /*; do
    if [ -L "$folder" ]; then cp -P "$folder" .
    elif [ -d "$folder" ]; then mkdir -p ".$folder"; mount --rbind "$folder" ".$folder"; fi
done
%s
"""
_PIVOT = """mkdir -p old; pivot_root . old; umount -l old
exec setpriv --reuid="$2" --regid="$2" --clear-groups "$3" -m ktrdr_vm "$4" """
_CHROOT = 'exec chroot . setpriv --reuid="$2" --regid="$2" --clear-groups "$3" -m ktrdr_vm "$4"'


def in_bare_root(person: Person, enter: str, command: str, place: Path) -> Ended:
    done = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", _BARE % enter, "sh", place, str(person.uid), person.python, command],
        env=person.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def test_in_a_root_without_systemd(alice: Person, tmp_path: Path) -> None:
    ended = in_bare_root(alice, _PIVOT, "list", tmp_path)
    assert (ended.code, alice.find("libvirtd") != []) == (0, True), ended.stderr
    end_world(alice)


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_in_a_chroot_it_says_what_the_kernel_forbids(alice: Person, tmp_path: Path, command: str) -> None:
    ended = in_bare_root(alice, _CHROOT, command, tmp_path)
    assert ended.code == 3 and "the kernel refuses user namespaces to this process" in ended.stdout + ended.stderr
    assert "pivot_root" in ended.stdout + ended.stderr and alice.processes() == {}


def test_folders_above_the_state_directory_keep_their_modes(bob: Person) -> None:
    above = bob.home / "above"
    above.mkdir(mode=0o755)
    above.chmod(0o755)
    os.chown(above, bob.uid, bob.uid)
    # Nothing on the way is closed to others, so nothing of it is replaced in the view of the daemons.
    state = Path(f"/var/tmp/{bob.name}-above")
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    os.chown(state, bob.uid, bob.uid)
    try:
        started = bob.start("list", environment={"KTRDR_VM_HOME": str(state / "inner")})
        out, err = started.communicate(timeout=120)
        assert started.returncode == 0, (out, err)
        assert stat.S_IMODE(state.stat().st_mode) == stat.S_IMODE(above.stat().st_mode) == 0o755
    finally:
        (state / "inner/world/idle-limit").write_text("0")
        wait_until(lambda: bob.processes() == {}, "the world ends", 30)
        shutil.rmtree(state)


def test_two_commands_at_once_make_one_world(alice: Person) -> None:
    started = [alice.start("list") for _ in range(6)]
    assert [one.wait(60) for one in started] == [0] * 6
    assert len(alice.find("world.keeper")) == 1 and len(alice.find("libvirtd")) == 1
    for one in started:
        one.communicate()
    end_world(alice)


def test_without_subordinate_ids_nothing_is_made_and_the_command_is_named(bob: Person) -> None:
    ids = f"{bob.ids[0]}-{bob.ids[-1]}"
    subprocess.run(["usermod", "--del-subuids", ids, bob.name], check=True, timeout=60)
    try:
        refused = bob.run("list")
        assert refused.code == 3 and "usermod --add-subuids" in refused.stderr and "Traceback" not in refused.stderr
        assert bob.processes() == {}
        checked = bob.run("doctor")
        assert checked.code == 3 and "missing  subordinate ids" in checked.stdout
    finally:
        subprocess.run(["usermod", "--add-subuids", ids, bob.name], check=True, timeout=60)


@pytest.fixture
def system_bus() -> Iterator[Path]:
    """The system bus of the host, as a socket that nobody answers where there is none."""
    path = Path("/run/dbus/system_bus_socket")
    if path.exists():
        yield path
        return
    is_new = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(path))
        path.chmod(0o666)
        bus.listen()
        yield path
    path.unlink()
    if is_new:
        path.parent.rmdir()


def test_the_system_bus_is_not_in_a_world(bob: Person, system_bus: Path) -> None:
    """libvirtd registers VMs with systemd-machined over it, which refuses everybody but root, and no VM starts then."""
    look = f"from ktrdr_vm import enter_world; enter_world(); import os; print(os.path.lexists({str(system_bus)!r}))"
    assert (
        bob.run(program=[bob.python, "-c", f"import os; print(os.path.lexists({str(system_bus)!r}))"]).stdout
        == "True\n"
    )
    seen = bob.run(program=[bob.python, "-c", look])
    assert seen.stdout == "False\n", seen.stderr
    end_world(bob)


def test_a_runtime_folder_that_somebody_else_made_is_refused(bob: Person) -> None:
    """/tmp is everybody's: who makes the folder first could otherwise answer in the person's name."""
    taken = bob.runtime
    shutil.rmtree(taken, ignore_errors=True)
    taken.mkdir(mode=0o777)
    try:
        refused = bob.run("list")
        assert refused.code == 3 and f"{taken} is not a folder of mode 0700 that belongs to you" in refused.stderr
    finally:
        taken.rmdir()


def test_a_state_directory_that_others_may_change_is_refused(bob: Person) -> None:
    state = bob.state
    subprocess.run(["mkdir", "-p", state], check=True, user=bob.uid)
    state.chmod(0o777)
    try:
        refused = bob.run("list")
        assert refused.code == 3 and f"other users can change {state}" in refused.stderr
        assert bob.processes() == {}
    finally:
        state.chmod(0o711)


def test_a_connection_waits_for_few_imports(alice: Person) -> None:
    """`proxy` is started for each connection. Its error, which there is here, needs click; nothing else does."""
    probe = (
        "import sys; sys.argv[1:] = ['proxy', 'absent']\n"
        "from ktrdr_vm.cli.entry import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('libvirt', 'rich', 'cerberus', 'jinja2', 'paramiko', 'yaml') if name in sys.modules])"
    )
    assert alice.run("list").code == 0
    ended = alice.run(program=[alice.python, "-c", probe])
    assert ended.stdout.strip() == "[]" and "no network namespace ktrdr-absent" in ended.stderr
    end_world(alice)
