"""The program without root: a person with subordinate ids, in a world of their own, beside another person and beside
root."""

from __future__ import annotations

import contextlib
import ctypes
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
import yaml
from laboratory.command import Ended
from laboratory.lab import Lab
from laboratory.person import Person, make_person
from laboratory.recorder import wait_until

from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.images.store import Image

pytestmark = pytest.mark.host_root

PROFILE = {
    "version": 1,
    "name": "without-root",
    "image": "debian-13-docker",
    "resources": {"vcpus": 1, "memory": "512MiB", "disk": "4GiB"},
    "workspace": {"source": "."},
    "mounts": [{"source": "data", "target": "/mnt/data"}],
    "egress": {"allow": [{"host": "allowed.test.lab", "ports": [80]}]},
    "secrets": [{"name": "token", "source": {"env": "KTRDR_LAB_TOKEN"}}],
}
WORKLOAD = (
    "test $(cat /mnt/data/file) = shared && test $(cat /run/secrets/token) = a-token-of-the-lab"
    " && curl -sf http://allowed.test.lab/ > /dev/null && ! curl -sf -m 5 http://192.168.77.9/"
    " && echo work > work && git add work && git commit -qm work"
)
GATE = """
- hosts: all
  gather_facts: false
  tasks:
    - name: the project is there
      command: test -e run.yaml
      args: {chdir: /workspace}
"""


@pytest.fixture(scope="module")
def alice(lab: Lab) -> Iterator[Person]:
    with make_person(0) as person:
        make_repository(person)
        assert outside(person) == []
        yield person


@pytest.fixture(scope="module")
def bob(lab: Lab) -> Iterator[Person]:
    with make_person(1) as person:
        yield person


@pytest.fixture(scope="module")
def with_image(alice: Person, image: Image) -> Person:
    """A copy: a person's state is the person's alone."""
    images = alice.state / "images"
    subprocess.run(["mkdir", "-p", "-m", "711", images], check=True)
    subprocess.run(["cp", "-a", "--sparse=always", image.directory, images], check=True, timeout=300)
    subprocess.run(["chown", "-R", f"{alice.uid}:{alice.uid}", alice.home / ".local"], check=True, timeout=60)
    return alice


def make_repository(person: Person) -> None:
    folder = person.home / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data/file").write_text("shared")
    (folder / "playbooks").mkdir()
    (folder / "playbooks/there.yaml").write_text(GATE)
    (folder / "run.yaml").write_text(
        yaml.safe_dump({**PROFILE, "workload": {"command": ["sh", "-c", WORKLOAD]}, "gates": []})
    )
    (folder / "keep.yaml").write_text(yaml.safe_dump({**PROFILE, "mode": "interactive"}))
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    subprocess.run(["chown", "-R", f"{person.uid}:{person.uid}", person.home], check=True, timeout=60)


def links() -> set[str]:
    """The interfaces of the lab's host."""
    return {
        entry["ifname"]
        for entry in json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    }


# Uids are given again: what an earlier user of the same one has left is not this person's.
_FOUND: dict[int, set[str]] = {}


def outside(person: Person) -> list[str]:
    """What the person owns outside of the home, and did not when the tests began."""
    found = subprocess.run(
        ["find", "/tmp", "/var/tmp", "/run", "/var/lib/libvirt", "/var/log/libvirt", "-xdev", "-user", str(person.uid)],
        capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    own = {path for path in found if not path.startswith((str(person.home), str(person.runtime)))}
    return sorted(own - _FOUND.setdefault(person.uid, own))


def end_world(person: Person) -> None:
    """By its own rule: nothing needs it any more."""
    limit = person.state / "world/idle-limit"
    limit.write_text("0")
    try:
        wait_until(lambda: person.processes() == {}, "the world ends when nobody needs it", 30)
    finally:
        limit.unlink()


# In the world like a guard: without the lock of a command. Its last word is seen only once it is in it.
_STAY = (
    "from ktrdr_vm import enter_world; enter_world(); import os, sys; "
    'os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "is-" + "in-it"])'
)


# -- the world itself --------------------------------------------------------------------------------------------------


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


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def passed(with_image: Person) -> dict[str, object]:
    """A run with a workload, a mount, a secret and a verification, from a template that is made for it."""
    ended = with_image.run("apply", "run.yaml", "--workspace", "project", "--instance-id", "mine", "--gate", "there", "--json", limit=1200,
                           program=[with_image.python, "-c", _IN_PROJECT])  # fmt: skip
    assert ended.code == 0, ended.stderr[-3000:]
    report: dict[str, object] = json.loads(ended.stdout)
    return report


_IN_PROJECT = (
    "import os; os.chdir('project'); import sys; sys.argv[3:5] = []; from ktrdr_vm.cli.entry import main; main()"
)


def test_a_run_passes_and_leaves_nothing(alice: Person, passed: dict[str, object]) -> None:
    assert passed["outcome"] == "passed" and passed["residue"] == []
    refs = subprocess.run(
        ["git", "for-each-ref", "refs/ktrdr"],
        cwd=alice.home / "project",
        capture_output=True,
        text=True,
        user=alice.uid,
    )
    assert "refs/ktrdr/mine/main" in refs.stdout
    assert [path.name for path in (alice.state / "instances").iterdir()] == []
    wrong = [
        path
        for path in (alice.home / "project", *(alice.home / "project").rglob("*"))
        if path.lstat().st_uid != alice.uid
    ]
    assert wrong == []
    end_world(alice)
    assert outside(alice) == []


@pytest.fixture
def living(alice: Person, passed: dict[str, object]) -> Iterator[Person]:
    kept = alice.run("apply", "project/keep.yaml", "--workspace", "project", "--instance-id", "kept", limit=900)
    assert kept.code == 0, kept.stderr[-3000:]
    yield alice
    destroyed = alice.run("destroy", "kept", "--yes", limit=300)
    assert destroyed.code == 0 and "residue: none" in destroyed.stdout, destroyed.stderr
    end_world(alice)


def test_a_living_instance_and_everybody_else(living: Person, bob: Person, lab: Lab) -> None:
    """One instance for all of it: a boot takes most of the time."""
    alice = living
    assert alice.run("exec", "kept", "--", "sh", "-c", "kill -9 $$").code == 137
    (alice.home / "sent").write_text("bytes")
    os.chown(alice.home / "sent", alice.uid, alice.uid)
    assert alice.run("cp", "sent", "kept:/tmp/sent").code == 0
    assert alice.run("exec", "kept", "--", "cat", "/tmp/sent").stdout == "bytes"
    _forwards_a_port_of_this_host(alice)
    _nobody_else_finds_it(alice, bob, lab)
    _other_rules_and_packets_are_no_matter(alice)
    for part in ("world.root", "world.keeper", "libvirtd", "pasta", "egress.guard"):
        os.kill(alice.find(part)[0], signal.SIGKILL)
        assert alice.run("exec", "kept", "--", "true").code == 0, part
    assert (
        alice.run("apply", "project/keep.yaml", "--workspace", "project", "--instance-id", "kept", limit=300).code == 0
    )
    fetch = "for i in 1 2 3 4 5 6 7 8 9; do curl -sf -m 5 http://allowed.test.lab/ >/dev/null && exit 0; sleep 1; done; exit 1"
    assert alice.run("exec", "kept", "--", "sh", "-c", fetch).code == 0
    assert alice.run("suspend", "kept").code == 0
    assert alice.find("qemu-system") == []
    assert alice.run("resume", "kept").code == 0
    assert alice.run("exec", "kept", "--", "cat", "/tmp/sent").stdout == "bytes"


def _forwards_a_port_of_this_host(alice: Person) -> None:
    assert (
        alice.run("exec", "kept", "--", "sudo", "systemd-run", "-q", "python3", "-m", "http.server", "8000").code == 0
    )
    client = alice.start("forward", "kept", "18431:8000")
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 18431), 2) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"200" in connection.recv(100)
            return False

        wait_until(answers, "the port of this host leads into the guest", 30)
    finally:
        client.kill()
        client.communicate()


def _nobody_else_finds_it(alice: Person, bob: Person, lab: Lab) -> None:
    """Another person, and root's own state: no name, no file, no socket, no process, no namespace."""
    assert json.loads(bob.run("list", "--json").stdout) == []
    assert bob.run("exec", "kept", "--", "true").code == 2
    # There is nothing of that name for them.
    assert "residue: none" in bob.run("destroy", "kept", "--yes").stdout
    assert alice.run("exec", "kept", "--", "true").code == 0
    assert "kept" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name.startswith("kv") for name in links())
    qemu, guard, keeper = (alice.find(part)[0] for part in ("qemu-system", "egress.guard", "world.keeper"))
    attempts = {
        "read the state": lambda: os.listdir(alice.state),
        "read a key": lambda: (alice.state / "instances/kept/ssh/login_key").read_bytes(),
        "signal QEMU": lambda: os.kill(qemu, signal.SIGTERM),
        "signal the guard": lambda: os.kill(guard, signal.SIGTERM),
        "signal the keeper": lambda: os.kill(keeper, signal.SIGTERM),
        "enter the namespaces": lambda: _setns(guard),
        "see the file system of the world": lambda: os.listdir(f"/proc/{guard}/root/run/libvirt"),
        "read the memory of QEMU": lambda: Path(f"/proc/{qemu}/mem").open("rb").close(),
        "use the runtime folder": lambda: os.listdir(alice.runtime),
    }
    for what, attempt in attempts.items():
        assert _is_refused(bob.uid, attempt), f"another person may {what}"
        # Each of them works for root of the host, so that what refuses is the person and not a missing thing.
        if what not in ("signal QEMU", "signal the guard", "signal the keeper", "enter the namespaces"):
            attempt()
    # QEMU is not the person, and cannot enter their home.
    assert Path(f"/proc/{qemu}").stat().st_uid in alice.ids or _owner(qemu) in alice.ids
    assert stat.S_IMODE(alice.home.stat().st_mode) == 0o700
    view = subprocess.run(
        ["ls", "-A", f"/proc/{qemu}/root{alice.home}"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert view == [".local"], "QEMU sees more of the home than the state directory"


def _other_rules_and_packets_are_no_matter(alice: Person) -> None:
    """Of the host's own network: a flush, an accept of another program, forwarding."""
    ledger = alice.state / "instances/kept/egress.jsonl"
    before = len(list(read_ledger(ledger, follow=False)))
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=30)
    subprocess.run(["nft", "-f", "-"], input="table inet other {\nchain o {\ntype filter hook output priority -300\naccept\n}\n}\n", text=True,
                   check=True, timeout=30)  # fmt: skip
    try:
        assert alice.run("exec", "kept", "--", "curl", "-sf", "-o", "/dev/null", "http://allowed.test.lab/").code == 0
        assert alice.run("exec", "kept", "--", "curl", "-sf", "-m", "5", "http://192.168.77.9/").code != 0
        lines = list(read_ledger(ledger, follow=False))[before:]
        assert [line for line in lines if line["kind"] == "guard"] == []
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "other"], check=True, timeout=30)


def _setns(pid: int) -> None:
    descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _owner(pid: int) -> int:
    return int(
        next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")).split()[
            1
        ]
    )


def _is_refused(uid: int, attempt: object) -> bool:
    """In a process of its own: a uid is not taken back."""
    assert callable(attempt)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            attempt()
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
