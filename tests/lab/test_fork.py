"""A fork is its own machine: what two machines must not share is compared pairwise. Three in every run, ten in the full
one."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from laboratory.instances import make_workspace
from laboratory.lab import Lab

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.plan.domain_xml import EMULATED_CPU
from ktrdr_vm.plan.guard_interface import GUEST_MAC
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = "version: 1\nname: fork\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"

# What each guest says of itself, as root. A line each: what, a space, the value.
ASK = """
echo hostname $(hostname)
echo machine-id $(cat /etc/machine-id)
echo host-key $(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)
echo login $(cat /home/ktrdr/.ssh/authorized_keys)
echo address $(ip -4 -br addr show dev eth0 | tr -s ' ' | cut -d' ' -f3)
echo mac $(cat /sys/class/net/eth0/address)
echo random $(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
echo uuid $(cat /proc/sys/kernel/random/uuid)
echo clock $(date +%s)
echo docker $(docker info --format '{{.Name}}')
echo keys $(ls /etc/ssh/ssh_host_*_key | wc -l)
"""
OWN = ("hostname", "machine-id", "host-key", "login", "random", "uuid", "docker")


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.full)])
def test_forks_share_nothing_that_tells_machines_apart(
    count: int, lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path)
    (workspace / "fork.yaml").write_text(PROFILE)
    made: list[Instance] = []
    said: list[dict[str, str]] = []
    frozen = 0
    try:
        for number in range(count):
            gathered = gather(
                workspace / "fork.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id(f"fork{number}")
            )
            template = find_template(lab.home, gathered.plan, image) or build_template(
                lab.home, gathered.plan, image, libvirt, progress=print
            )
            frozen = frozen or Path(template.memory).stat().st_mtime_ns
            instance = Instance(lab.home, gathered.plan.identity, libvirt)
            made.append(instance)
            with instance.locked():
                loaded = instance.create(gathered.plan, read_secret=lambda _: b"", mount_roots=(), template=template)
            guest, asked = loaded.connect(), time.time()
            answer = guest.run(ASK, become=True, timeout=60)
            said.append(dict(line.split(" ", 1) for line in answer.stdout.decode().splitlines()))
            assert asked - 5 <= int(said[-1]["clock"]) <= time.time() + 2
            assert [status.differences for status in loaded.status() if status.differences or not status.exists] == []
            if gathered.plan.facts.accelerator == "tcg":
                # Asked in three calls: libvirt still knows the CPU that the guest has.
                cpu = ElementTree.fromstring(libvirt.describe(instance.identity.domain)).find("cpu")
                assert cpu is not None and (cpu.get("check"), cpu.findtext("model")) == ("full", EMULATED_CPU)
                policies = {one.get("name"): one.get("policy") for one in cpu.findall("feature")}
                assert policies == {
                    "vmx": "disable",
                    "svm": "disable",
                    "pclmuldq": "require",
                    "hypervisor": "require",
                    "arat": "require",
                }
        for instance, answers in zip(made, said, strict=True):
            assert answers["hostname"] == answers["docker"] == instance.identity.instance_id
            assert answers["mac"] == GUEST_MAC and answers["keys"] == "1"
        for one, other in itertools.combinations(said, 2):
            assert [what for what in OWN if one[what] == other[what]] == []
        # What a fork writes to its memory is its own: the template's stays as it was frozen.
        assert Path(template.memory).stat().st_mtime_ns == frozen
    finally:
        for instance in made:
            with instance.locked():
                instance.destroy()
