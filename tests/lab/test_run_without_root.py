"""A run and a living instance of a person without root."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.lab import Lab
from laboratory.person import Person
from laboratory.recorder import wait_until
from laboratory.without_root import copy_image, end_world, links, outside

from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.images.store import Image

pytestmark = pytest.mark.host_root


@pytest.fixture(scope="module")
def with_image(alice: Person, image: Image) -> Person:
    copy_image(alice, image)
    return alice


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
    _is_answered_by_the_persons_policy(alice)
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


POLICY = "escalations: {approve: [{host: evil.test.lab, ports: [80], longest: 2m}]}\n"
ASK = (
    "ktrdr-escalate network evil.test.lab 80 --seconds 60 --blocked it --why so --option wait --recommendation allow"
    " --decision 'may I' --evidence log && curl -sf -m 20 http://evil.test.lab/"
)


def _is_answered_by_the_persons_policy(alice: Person) -> None:
    """The guard reads it, whose home directory in the world is that of root."""
    policy = alice.home / ".config/ktrdr-vm/policy.yaml"
    subprocess.run(["mkdir", "-p", policy.parent], check=True, user=alice.uid)
    policy.write_text(POLICY)
    os.chown(policy, alice.uid, alice.uid)
    asked = alice.run("exec", "kept", "--", "sh", "-c", ASK)
    assert asked.code == 0, asked.stderr
    policy.unlink()


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
