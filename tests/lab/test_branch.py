"""Three ways from here: what ran runs on in each copy, and nothing that tells the machines apart, and no secret of the
original, is shared."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from laboratory import command, world
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from test_fork import ASK

from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.errors import GuestError, UsageError
from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.netns import list_names
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance import branch as module
from ktrdr_vm.instance.branch import HostInputs, branch
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.suspend import resume, suspend
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = """\
version: 1
name: branch
mode: interactive
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
egress: {allow: [{host: allowed.test.lab, ports: [80]}]}
secrets: [{name: canary, source: {env: KTRDR_LAB_CANARY}}]
"""
COUNT = "systemd-run --quiet --unit=counter sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.2; done'"
IN_MEMORY = secrets.token_hex(16).encode()
OWN = ("hostname", "machine-id", "host-key", "login", "random", "uuid")


def _shell(instance: LoadedInstance, line: str) -> str:
    done = instance.connect(limit=BOOT_LIMIT["tcg"]).run(line, become=True, timeout=120)
    return (done.stdout + done.stderr).decode()


def _die_while_copying(loaded: LoadedInstance, libvirt: Libvirt, *, live: bool) -> None:
    """Leave what a killed `branch` leaves: QEMU goes on with the copy, and would pause the original at its end."""
    domain, folder = loaded.identity.domain, loaded.paths.branching
    loaded.journal.enter("suspending")
    make_private(folder)
    if not live:
        libvirt.suspend(domain)
    capability = {"capability": "x-ignore-shared", "state": True}
    libvirt.monitor(domain, "migrate-set-capabilities", {"capabilities": [capability]})
    libvirt.monitor(domain, "migrate-set-parameters", {"max-bandwidth": 1 << 20})
    with (folder / "state").open("wb") as file:
        libvirt.monitor(domain, "getfd", {"fdname": "state"}, files=(file.fileno(),))
        libvirt.monitor(domain, "migrate", {"uri": "fd:state"})
    loaded.close()


def test_three_ways_from_here(
    lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path)
    (workspace / "branch.yaml").write_text(PROFILE)
    gathered = gather(workspace / "branch.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id("branched"))
    plan = gathered.plan
    template = find_template(lab.home, plan, image) or build_template(lab.home, plan, image, libvirt, progress=print)
    origin = Instance(lab.home, plan.identity, libvirt)
    names = [parse_instance_id(f"{plan.identity.instance_id}-{number}") for number in (1, 2)]
    copies = [Instance(lab.home, name, libvirt) for name in names]
    by_command = Instance(lab.home, parse_instance_id(lab.new_id("by-command")), libvirt)
    first, anew = (f"CANARY{secrets.token_hex(16)}".encode() for _ in range(2))
    seen: list[bytes] = []
    unseen = module._create

    def create(loaded: LoadedInstance, copy: Instance, folder: Path, *more: object) -> None:
        seen.append((folder / "state").read_bytes() + (folder / "disk.qcow2").read_bytes())
        # What is looked for would be there: the memory is in it.
        assert IN_MEMORY in seen[-1]
        assert (folder / "state").stat().st_mode & 0o077 == 0
        unseen(loaded, copy, folder, *more)  # type: ignore[arg-type]

    def copy_state(*more: Any, **options: Any) -> float:
        # The memory of such a process has what was sent over its connection.
        assert run_script(libvirt, origin.identity.domain, "pgrep -x sshd-session | wc -l", "count") == "0\n"
        # As an approval that was checked before the journal said that the secrets are being taken away.
        _shell(loaded, "echo late > /run/secrets/late; chmod 400 /run/secrets/late")
        loaded.close()
        return copied(*more, **options)

    copied = module.copy_state
    monkeypatch.setattr(module, "copy_state", copy_state)
    monkeypatch.setattr(module, "_create", create)
    try:
        with origin.locked():
            loaded = origin.create(plan, read_secret=lambda _: first, mount_roots=(), template=template)
            loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            loaded.complete(read_secret=lambda _: first, mount_roots=())
            _shell(loaded, COUNT)
            _shell(loaded, f"echo kept > /root/file; echo memory > /run/file; echo {IN_MEMORY.decode()} > /run/seen")
            # Without its agent no copy could get an identity: nothing is changed.
            _shell(loaded, "systemctl stop qemu-guest-agent")
            monkeypatch.setattr(module, "AGENT_LIMIT", 5.0)
            with pytest.raises(GuestError, match="agent does not answer"):
                branch(loaded, names, HostInputs(lambda _: anew))
            assert _shell(loaded, "cat /run/secrets/canary") == first.decode() and copies[0].find_journal() is None
            monkeypatch.setattr(module, "AGENT_LIMIT", 30.0)
            _shell(loaded, "systemctl start qemu-guest-agent")
            counted = int(_shell(loaded, "cat /run/count"))
            boot_id = _shell(loaded, "cat /proc/sys/kernel/random/boot_id")
            began = time.monotonic()
            made = branch(loaded, names, HostInputs(lambda _: anew))
            print(
                f"two branches in {time.monotonic() - began:.1f} s, the original paused for {made.paused * 1000:.0f} ms"
            )
        # The secret that the original had is neither in the memory nor on the disk from which the copies begin.
        assert len(seen) == 2 and not any(first in one or anew in one for one in seen)
        assert not origin.paths.branching.exists()
        opened = [loaded, *(copy.load() for copy in copies)]
        said = [dict(line.split(" ", 1) for line in _shell(one, ASK).splitlines()) for one in opened]
        for one, answers in zip(opened, said, strict=True):
            assert answers["hostname"] == one.instance_id and answers["keys"] == "1"
            assert abs(int(answers["clock"]) - time.time()) < 60
            assert _shell(one, "cat /proc/sys/kernel/random/boot_id") == boot_id
            assert _shell(one, "cat /root/file /run/file") == "kept\nmemory\n"
            assert _shell(one, "cat /run/secrets/canary") == anew.decode()
            assert _shell(one, "ls /run/secrets") == ("canary\n" if one is not loaded else "canary\nlate\n")
            assert [status for status in one.status() if status.differences or not status.exists] == []
            # The process that counts has its number in its memory only.
            assert int(_shell(one, "cat /run/count")) > counted
            assert "served by" in _shell(one, "curl -s -m 20 http://allowed.test.lab/")
            mark = len(lab.recorder.packets())
            _shell(one, f"curl -s -m 3 http://{world.EVIL}:8443/")
            assert [packet for packet in lab.recorder.packets()[mark:] if packet.address == world.EVIL] == []
            rows = list(read_ledger(one.paths.ledger, follow=False))
            assert {row["instance_id"] for row in rows} == {one.instance_id} and "allowed.test.lab" in str(rows)
        assert len({one.identity.namespace for one in opened} & set(list_names("ktrdr-"))) == 3
        assert len({one.journal.genid for one in opened}) == 3
        for mine, other in itertools.combinations(said, 2):
            assert [what for what in OWN if mine[what] == other[what]] == []
        counts = [int(_shell(one, "cat /run/count")) for one in opened]
        time.sleep(2)
        assert all(int(_shell(one, "cat /run/count")) > before for one, before in zip(opened, counts, strict=True))
        # What one writes, no other has.
        _shell(opened[1], "echo other > /root/file; sync")
        assert _shell(opened[0], "cat /root/file") == _shell(opened[2], "cat /root/file") == "kept\n"
        # A branch is an instance like others.
        with copies[0].locked():
            opened[1].close()
            suspend(opened[1])
            resume(opened[1], read_secret=lambda _: anew)
        assert _shell(opened[1], "cat /root/file") == "other\n"
        with origin.locked(), pytest.raises(UsageError, match="already"):
            branch(loaded, names[:1], HostInputs(lambda _: anew))
        for live in (False, True):
            with origin.locked():
                _die_while_copying(loaded, libvirt, live=live)
                resume(loaded, read_secret=lambda _: anew)
                assert libvirt.monitor(loaded.identity.domain, "query-migrate")["status"] == "cancelled"
                assert not origin.paths.branching.exists()
                assert (
                    _shell(loaded, "cat /run/secrets/canary; cat /proc/sys/kernel/random/boot_id")
                    == anew.decode() + boot_id
                )
        # No setting of the copy is left in QEMU: the state that it writes now can be read.
        with origin.locked():
            suspend(loaded)
            resume(loaded, read_secret=lambda _: anew)
        assert _shell(loaded, "cat /proc/sys/kernel/random/boot_id") == boot_id
        # As a person does it: the name of the copy, and how long the original stood still.
        words = ["branch", plan.identity.instance_id, by_command.identity.instance_id, "--json"]
        ended = command.run(lab, *words, limit=command.LIMIT, environment={"KTRDR_LAB_CANARY": "of-the-shell"})
        assert ended.code == 0, ended.stderr
        answer = json.loads(ended.stdout)
        assert answer["instances"] == [by_command.identity.instance_id] and 0 < answer["paused"] < 60
        opened.append(by_command.load())
        assert _shell(opened[-1], "cat /root/file /run/file; hostname") == f"kept\nmemory\n{words[2]}\n"
        assert _shell(opened[-1], "cat /run/secrets/canary") == "of-the-shell"
        assert _shell(opened[-1], "grep ^KTRDR_INSTANCE_ID= /etc/environment") == f"KTRDR_INSTANCE_ID={words[2]}\n"
        assert command.run(lab, *words, environment={"KTRDR_LAB_CANARY": "again"}).code == 2
    finally:
        for instance in (by_command, *copies, origin):
            with instance.locked():
                instance.destroy()
            assert instance.find_residue() == [] and not instance.paths.directory.exists()
