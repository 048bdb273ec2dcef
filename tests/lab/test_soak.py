"""Make, gate, destroy, again and again, three at a time, some of them killed: no residue and no growth.

Three cycles are part of `make test`; `make soak` runs a hundred and writes the table, docs/soak.md. KTRDR_VM_SOAK says
how many.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from laboratory.command import run, start
from laboratory.inventory import take_inventory
from laboratory.lab import Lab

from ktrdr_vm.host.accelerator import find_accelerator
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import PROJECT

pytestmark = pytest.mark.usefixtures("image")

CYCLES = int(os.environ.get("KTRDR_VM_SOAK", "3"))
PARALLEL = 3
PROFILE = "version: 1\nname: soak\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\ngates: [./gate.yaml]\n"
GATE = "- name: soak\n  hosts: all\n  tasks:\n    - name: it lives\n      ansible.builtin.command: {cmd: 'true'}\n"
# Of the daemon, after warming up: caches fill, a leak of a thing for each cycle is more than this.
GROWTH_KIB, GROWTH_FILES = 64 * 1024, 24


def measure(lab: Lab, libvirt: Libvirt) -> dict[str, int]:
    """What would grow with a leak: of the daemons, of the kernel, of the state directory, of libvirt."""
    memory = descriptors = 0
    for name in ("libvirtd", "virtlogd"):
        process = Path("/proc", (lab.scratch / f"{name}.pid").read_text().strip())
        memory += next(
            int(line.split()[1]) for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS")
        )
        descriptors += len(list((process / "fd").iterdir()))
    flows = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    connection = libvirt.connect()
    return {
        "memory KiB": memory,
        "descriptors": descriptors,
        "files": sum(1 for place in (lab.home.instances, lab.home.locks) for _ in place.rglob("*")),
        "conntrack": int(flows.read_text()) if flows.exists() else 0,
        "libvirt objects": sum(len(listed) for listed in (connection.listAllDomains(), connection.listAllNetworks(),
                                                          connection.listAllStoragePools(), connection.listAllNWFilters())),
    }  # fmt: skip


def find_new(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What the host has now and had not."""
    return [f"{kind} {row}" for kind, rows in after.items() for row in set(rows) - set(before[kind])]


def render(rows: list[dict[str, int]], seconds: float) -> str:
    """The table that the documentation shows."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    lines += [f"| {' | '.join(str(row[name]) for name in names)} |" for row in rows]
    last = rows[-1]
    return (
        "# The soak test\n\nThe result of the last `make soak`. [reliability.md](reliability.md) describes the test and the columns.\n\n"
        f"{last['cycles']} cycles, {PARALLEL} at a time, {last['killed']} of them killed, in {seconds / 60:.0f} minutes on {os.cpu_count()} "
        f"cores{'' if find_accelerator().name == 'kvm' else ' without KVM'}. Residue: {last['residue']}.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def test_nothing_is_left_and_nothing_grows(lab: Lab, libvirt: Libvirt, capsys: pytest.CaptureFixture[str]) -> None:
    place = lab.scratch / "soak"
    place.mkdir()
    (place / "profile.yaml").write_text(PROFILE)
    (place / "gate.yaml").write_text(GATE)
    dice = random.Random(20260101)
    warm = start(lab, lab.new_id("soak-warm"), "apply", "profile.yaml", "--instance-id", "soak-warm", cwd=place).wait()
    assert warm.code == 0, warm.stderr
    before, inventory, clock = measure(lab, libvirt), take_inventory(lab, libvirt), time.monotonic()
    done = killed = 0
    rows = [{"cycles": 0, "killed": 0, "residue": 0, **before}]
    while done < CYCLES:
        running = []
        for lane in range(min(PARALLEL, CYCLES - done)):
            instance_id = lab.new_id(f"soak-{done + lane}")
            started = start(lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, cwd=place)
            running.append((started, dice.uniform(1, 25) if dice.random() < 0.34 else None))
        began = time.monotonic()
        for started, moment in sorted(running, key=lambda one: one[1] or 1e9):
            if moment is not None:
                time.sleep(max(0.0, moment - (time.monotonic() - began)))
                started.process.send_signal(signal.SIGKILL)
                killed += 1
            ended = started.wait()
            assert moment is not None or ended.code == 0, ended.stderr
        done += len(running)
        collected = run(lab, "gc")
        assert collected.code == 0, collected.stderr
        left = find_new(inventory, take_inventory(lab, libvirt))
        rows.append({"cycles": done, "killed": killed, "residue": len(left), **measure(lab, libvirt)})
        assert left == []
    table = render(rows, time.monotonic() - clock)
    if os.environ.get("KTRDR_VM_SOAK"):
        (PROJECT / "docs" / "soak.md").write_text(table)
    with capsys.disabled():
        print(f"\n{table}\nsoak: cycles {done}, killed {killed}, residue {rows[-1]['residue']}")
    after = measure(lab, libvirt)
    assert take_inventory(lab, libvirt) == inventory
    assert after["files"] == before["files"] and after["libvirt objects"] == before["libvirt objects"]
    assert after["conntrack"] <= before["conntrack"] + PARALLEL
    assert after["descriptors"] <= before["descriptors"] + GROWTH_FILES
    assert after["memory KiB"] <= before["memory KiB"] + GROWTH_KIB
