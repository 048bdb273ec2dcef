"""Somebody comes back to it: what ran goes on, the clock is right, and the network is as closed as it was. Also after
the host's end."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from pathlib import Path

import pytest
from laboratory import command, world
from laboratory.instances import make_workspace
from laboratory.lab import Lab

from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.garbage import collect_garbage
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.inventory import find_instances
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.suspend import resume, suspend
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = """\
version: 1
name: rest
mode: interactive
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
egress: {allow: [{host: allowed.test.lab, ports: [80]}]}
secrets: [{name: canary, source: {env: KTRDR_LAB_CANARY}}]
"""
MOUNTS = "mounts: [{source: ./shared, target: /data}]\n"
# A process with a state that only its memory has.
COUNT = "systemd-run --quiet --unit=counter sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.2; done'"


def _shell(instance: LoadedInstance, line: str) -> str:
    done = instance.connect().run(line, become=True, timeout=60)
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("kind", ["forked", pytest.param("mounted", marks=pytest.mark.full)])
def test_what_ran_goes_on_behind_the_same_wall(
    kind: str, lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path)
    (workspace / "rest.yaml").write_text(PROFILE + (MOUNTS if kind == "mounted" else ""))
    gathered = gather(
        workspace / "rest.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id(f"rest-{kind}")
    )
    plan, canary = gathered.plan, f"CANARY{secrets.token_hex(16)}".encode()
    template = None
    if kind == "forked":
        template = find_template(lab.home, plan, image) or build_template(
            lab.home, plan, image, libvirt, progress=print
        )
    instance = Instance(lab.home, plan.identity, libvirt)
    identity, paths = instance.identity, instance.paths
    try:
        with instance.locked():
            loaded = instance.create(plan, read_secret=lambda _: canary, mount_roots=(), template=template)
            loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            loaded.complete(read_secret=lambda _: canary, mount_roots=())
            _shell(loaded, COUNT)
            time.sleep(1)
            before = int(_shell(loaded, "cat /run/count"))
            boot_id = _shell(loaded, "cat /proc/sys/kernel/random/boot_id")
            _shell(loaded, "echo kept > /root/file")

            suspend(loaded)

        # Nothing of it runs or listens, and nothing that was secret is on the disk.
        assert DomainControl(identity.domain).find_state() in ("", "shutoff")
        for argv in (["ip", "link"], ["ip", "rule"], ["nft", "list", "tables"]):
            said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
            assert identity.tap not in said and identity.table not in said
        assert canary not in paths.saved.read_bytes()
        found_state = paths.saved.stat()
        assert (found_state.st_mode & 0o077, found_state.st_uid) == (0, 0)
        assert 0 < found_state.st_blocks * 512 < plan.profile.resources.memory << 20, "what the guest has not used"
        [found] = [found for found in find_instances(lab.home, libvirt) if found.instance_id == identity.instance_id]
        assert (found.state, found.note, found.kept) == ("suspended", "", True)
        assert {row.kind: (row.exists, row.differences) for row in loaded.status()} == dict.fromkeys(
            ("overlay", "seed", "saved"), (True, ())
        )
        with pytest.raises(UsageError, match="suspended"):
            loaded.connect()
        assert [
            row
            for row in collect_garbage(lab.home, libvirt, dry_run=True)
            if row["instance_id"] == identity.instance_id
        ] == []
        # As after the host's end: libvirt has forgotten it as well.
        libvirt.stop(identity.domain)
        time.sleep(3.0)

        with instance.locked():
            resume(loaded, read_secret=lambda _: canary)
        now = time.time()
        assert abs(float(_shell(loaded, "date +%s.%N")) - now) < 5
        assert _shell(loaded, "cat /proc/sys/kernel/random/boot_id") == boot_id
        after = int(_shell(loaded, "cat /run/count"))
        assert after >= before
        time.sleep(1)
        assert int(_shell(loaded, "cat /run/count")) > after, "the process that counted does not run any more"
        assert _shell(loaded, "cat /root/file") == "kept\n"
        assert _shell(loaded, "cat /run/secrets/canary") == canary.decode()
        assert not paths.saved.exists()
        if kind == "mounted":
            assert _shell(loaded, "cat /data/input.txt") == "from the host\n"
        assert [status for status in loaded.status() if status.differences or not status.exists] == []
        # The policy holds: what is allowed answers, what is not is refused and arrives nowhere.
        assert "served by" in _shell(loaded, "curl -s -m 20 http://allowed.test.lab/")
        mark = len(lab.recorder.packets())
        _shell(loaded, f"curl -s -m 3 http://{world.EVIL}:8443/; curl -s -m 3 http://evil.test.lab/")
        assert [packet for packet in lab.recorder.packets()[mark:] if packet.address == world.EVIL] == []
        # libvirt knows it again as something that stays.
        facts = libvirt.find(identity.domain)
        assert facts is not None and facts.persistent

        # And once more, and then it is destroyed as it lies there: the saved state is part of the proof.
        loaded.close()
        suspended = command.run(lab, "suspend", identity.instance_id)
        assert suspended.code == 0, suspended.stderr
        entered = command.run(lab, "ssh", identity.instance_id, "--", "true")
        assert entered.code == 2 and f"ktrdr-vm resume {identity.instance_id}" in entered.stderr
        listed = json.loads(command.run(lab, "list", "--json").stdout)
        assert [row["state"] for row in listed if row["instance_id"] == identity.instance_id] == ["suspended"]
        # Its secret's variable is not set, so nothing is begun.
        resumed = command.run(lab, "resume", identity.instance_id)
        assert resumed.code == 2 and "KTRDR_LAB_CANARY" in resumed.stderr
        assert any("saved" in what for what in instance.find_residue())
    finally:
        with instance.locked():
            instance.destroy()
    assert instance.find_residue() == []
    assert not paths.directory.exists()
