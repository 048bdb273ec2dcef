"""Make, gate, destroy, again and again, three at a time, some of them killed: no residue and no growth.

A few cycles are part of `make test-full`; `make soak` runs a hundred and prints the table. KTRDR_VM_SOAK says how many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from laboratory.command import run, start
from laboratory.inventory import take_inventory
from laboratory.lab import Lab

from ktrdr_vm.host.libvirt import Libvirt

pytestmark = [pytest.mark.vm, pytest.mark.full, pytest.mark.usefixtures("image")]

CYCLES = int(os.environ.get("KTRDR_VM_SOAK", "6"))
PARALLEL = 3
PROFILE = "version: 1\nname: soak\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 1GiB, disk: 10GiB}\ngates: [./gate.yaml]\n"
GATE = "- name: soak\n  hosts: all\n  tasks:\n    - name: it lives\n      ansible.builtin.command: {cmd: 'true'}\n"
# Of the daemon, after warming up: caches fill, a leak of a thing for each cycle is more than this.
GROWTH_KIB, GROWTH_FILES = 64 * 1024, 24


def measure(lab: Lab, libvirt: Libvirt) -> dict[str, int]:
    """What would grow with a leak."""
    pid = int((lab.scratch / "libvirtd.pid").read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    flows = subprocess.run(["conntrack", "-C"], capture_output=True, text=True)
    return {
        "libvirtd_rss_kib": rss,
        "libvirtd_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "flows": int(flows.stdout or 0) if flows.returncode == 0 else 0,
        "files": sum(1 for place in (lab.home.instances, lab.home.locks) for _ in place.rglob("*")),
        "objects": sum(len(rows) for rows in take_inventory(lab, libvirt).values()),
    }


def test_nothing_is_left_and_nothing_grows(lab: Lab, libvirt: Libvirt, capsys: pytest.CaptureFixture[str]) -> None:
    place = lab.scratch / "soak"
    place.mkdir()
    (place / "profile.yaml").write_text(PROFILE)
    (place / "gate.yaml").write_text(GATE)
    dice = random.Random(20260101)
    warm = start(lab, lab.new_id("soak-warm"), "apply", "profile.yaml", "--instance-id", "soak-warm", cwd=place).wait()
    assert warm.code == 0, warm.stderr
    before, inventory = measure(lab, libvirt), take_inventory(lab, libvirt)
    done = killed = 0
    rows = []
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
        rows.append({"cycles": done, "killed": killed, **measure(lab, libvirt)})
    after = measure(lab, libvirt)
    with capsys.disabled():
        print("\n" + " ".join(f"{name:>16}" for name in rows[0]))
        for row in rows:
            print(" ".join(f"{value:>16}" for value in row.values()))
        print(f"soak: cycles {done}, killed {killed}, residue {after['objects'] - before['objects']}")
    assert take_inventory(lab, libvirt) == inventory
    assert after["files"] == before["files"] and after["flows"] <= before["flows"] + PARALLEL
    assert after["libvirtd_files"] <= before["libvirtd_files"] + GROWTH_FILES
    assert after["libvirtd_rss_kib"] <= before["libvirtd_rss_kib"] + GROWTH_KIB
