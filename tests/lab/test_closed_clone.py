"""A clone that only its owner may enter, as one beneath root's home is: what gives up its privilege cannot read it any
more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rrset
import pytest
from laboratory import namespaces, world
from laboratory.collector import ADDRESS, PORT
from laboratory.command import assert_nothing_left, start
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.host import process
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.instance.guard_status import check_guard
from ktrdr_vm.plan.guard_interface import INBOX_PORT
from ktrdr_vm.profile.collector import Collector

pytestmark = pytest.mark.host_root

# What a name server may send along with an address, of every kind that one meets.
ALONG = {
    "AAAA": "2001:db8::10", "MX": "10 mail.test.lab.", "TXT": '"v=spf1 -all"', "SRV": "0 5 443 api.test.lab.", "CAA": '0 issue "ca.example"',
    "HTTPS": "1 . alpn=h2", "SVCB": "1 . alpn=h3", "NS": "ns.test.lab.", "PTR": "x.test.lab.", "DNAME": "y.test.lab.",
    "SOA": "ns.test.lab. root.test.lab. 1 2 3 4 5", "NAPTR": '10 20 "s" "SIP" "" _sip.test.lab.', "SSHFP": "1 1 " + 20 * "ab", "TLSA": "3 1 1 " + 32 * "ab",
    "DS": "1 8 2 " + 32 * "ab", "LOC": "52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m",
}  # fmt: skip


@pytest.fixture
def clone(lab: Lab) -> Iterator[Path]:
    """This checkout and its virtual environment, seen beneath a folder of mode 0700."""
    closed = lab.scratch / "closed"
    made = closed / "clone"
    made.mkdir(parents=True, exist_ok=True)
    closed.chmod(0o700)
    namespaces.mount(str(PROJECT), made, flags=namespaces.MS_BIND)
    # Whoever clears the scratch folder before this is unmounted must not clear the checkout.
    namespaces.mount("none", made, flags=namespaces.MS_BIND | namespaces.MS_REMOUNT | namespaces.MS_RDONLY)
    yield made
    process.run(["umount", "-l", str(made)], timeout=20)


@pytest.fixture
def packages(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guard and its children are started from there. Returns the folder of the installed packages."""
    found = clone / Path(process.site.getsitepackages()[0]).relative_to(PROJECT)
    monkeypatch.setattr(process, "_module_folders", lambda: f"{clone}:{found}")
    return found


def open_guest(lab: Lab) -> NamespaceGuest:
    """With every part that a guard can have."""
    profile: dict[str, Any] = {
        "version": 1, "name": "net", "image": "none", "mode": "interactive", "telemetry": {"otlp": True},
        "egress": {"allow": [{"host": "allowed.test.lab", "ports": [80, 443]}, {"host": "alias.test.lab", "ports": [443]}]},
    }  # fmt: skip
    return NamespaceGuest(lab.home, profile=profile, collector=Collector("http", ADDRESS, PORT, address=ADDRESS))


def test_all_parts_serve_and_names_are_answered(lab: Lab, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = lab.world.dns.answer

    def answer_with_more(wire: bytes) -> bytes:
        reply = dns.message.from_wire(answer(wire))
        for kind, value in ALONG.items():
            reply.additional.append(dns.rrset.from_text(f"{kind.lower()}.test.lab.", 60, "IN", kind, value))
        return reply.to_wire(max_size=65535)

    monkeypatch.setattr(lab.world.dns, "answer", answer_with_more)
    with open_guest(lab) as guest:
        parts = GuardClient(guest.paths.guard).status()["parts"]
        assert {name for name, part in parts.items() if part["serves"]} == set(parts)
        assert {"the resolver", "the proxy", "the escalation inbox", "the telemetry relay"} <= set(parts)
        assert guest.lookup("allowed.test.lab")["addresses"] == [world.WEB], guest.ledger()
        assert guest.lookup("alias.test.lab", over="tcp")["addresses"] == [world.OTHER]
        # Kinds of questions, asked by number: none of them meets a module that is not there.
        for number in (*range(1, 70), 99, 249, 250, 251, 255, 256, 257, 32769):
            assert guest.lookup("allowed.test.lab", type=number)["outcome"] == "answered", number
        assert guest.lookup("nobody.test.lab")["rcode"] == 3
        for body in (b"{}", b"\xff\xfe{\x00}\x00", b"\x00\x00\xfe\xff", b"\xff"):
            request = b"POST /v1/escalations HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            said = guest.probe("http", address=guest.gateway, port=INBOX_PORT, send=request.decode("latin-1"))
            assert said.get("status") == 400, said
        assert check_guard(guest.paths.guard) == []
        # Nothing was asked for that a rehearsal had not imported, and nothing went wrong unseen.
        assert (guest.paths.guard / "guard.log").read_text() == ""


@pytest.mark.parametrize(
    ("gone", "part"),
    [("dns", "the resolver"), ("opentelemetry", "the telemetry relay")],
)
def test_a_part_that_cannot_serve_is_found_before_the_machine_starts(
    lab: Lab, packages: Path, gone: str, part: str
) -> None:
    with empty(packages / gone), contextlib.ExitStack() as stack:
        guest = open_guest(lab)
        stack.callback(guest.__exit__)
        guest.paths.directory.mkdir(mode=0o711)
        guest.host_namespace.create()
        guest.firewall.create()
        guest.guard.create()
        [said] = [line for line in guest.guard.verify() if line.startswith(part)]
        assert said.startswith(f"{part} does not serve: it ended with ") and f"No module named '{gone}" in said
        # In its own words, whole, where a person looks.
        log = (guest.paths.guard / "guard.log").read_text()
        assert f"{part}: Traceback" in log and f"{part}: ModuleNotFoundError: No module named '{gone}" in log
        notes = [str(row["message"]) for row in guest.read_ledger(kind="guard", verdict="note")]
        assert any("is started again" in note and f"No module named '{gone}" in note for note in notes)


@contextlib.contextmanager
def empty(folder: Path) -> Iterator[None]:
    """As if what is in it had never been installed."""
    namespaces.mount("none", folder, "tmpfs")
    try:
        yield
    finally:
        process.run(["umount", "-l", str(folder)], timeout=20)


def test_a_part_that_comes_back_is_found_serving(lab: Lab, packages: Path) -> None:
    """What made it end has passed: nobody has to apply again."""
    with contextlib.ExitStack() as stack:
        guest = open_guest(lab)
        stack.callback(guest.__exit__)
        guest.paths.directory.mkdir(mode=0o711)
        guest.host_namespace.create()
        guest.firewall.create()
        with empty(packages / "dns"):
            guest.guard.create()
            assert guest.guard.verify()
        wait_until(lambda: guest.guard.verify() == [], "it serves", 60)


@pytest.mark.usefixtures("image")
def test_the_main_path_from_such_a_clone(lab: Lab, clone: Path) -> None:
    """The program itself, from its file in the closed folder."""
    place = make_workspace(lab.scratch / "closed-main")
    (place / "profile.yaml").write_text(
        "version: 1\nname: closed\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"
        "egress: {allow: [{host: allowed.test.lab, ports: [80]}]}\ngates: [./gate.yaml]\n"
    )
    (place / "gate.yaml").write_text(
        "- name: out\n  hosts: all\n  tasks:\n"
        "    - {name: fetch, ansible.builtin.command: {cmd: curl -sS --fail --max-time 60 http://allowed.test.lab/}}\n"
    )
    instance_id = lab.new_id("closed")
    program = f"import sys; sys.path.insert(0, {str(clone)!r}); from ktrdr_vm.cli.main import main; main()"
    python = clone / Path(sys.executable).relative_to(PROJECT)
    words = ("apply", "profile.yaml", "--instance-id", instance_id, "--json")
    ended = start(lab, instance_id, *words, cwd=place, program=[str(python), "-c", program]).wait()
    assert os.stat(clone.parent).st_mode & 0o777 == 0o700
    assert ended.code == 0, ended.stderr
    assert ended.report["outcome"] == "passed" and ended.report["residue"] == []
    assert ended.report["egress"]["allowed"]
    assert_nothing_left(lab, instance_id)
