"""How `apply` ends when it does not pass: its exit code, its report, and still nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.lab import Lab
from laboratory.recorder import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("image")]


@pytest.fixture(scope="module")
def workspace(lab: Lab) -> Path:
    place = lab.scratch / "endings"
    place.mkdir()
    return place


def write(place: Path, name: str, *, gate: str, extra: str = "") -> Path:
    (place / "gates").mkdir(exist_ok=True)
    (place / "gates" / f"{name}.yaml").write_text(gate)
    profile = place / f"{name}-profile.yaml"
    profile.write_text(
        f"version: 1\nname: {name}\nimage: debian-13-docker\nresources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}\n"
        f"gates: [./gates/{name}.yaml]\n{extra}"
    )
    return profile


def test_a_failing_gate_is_exit_1_and_a_second_apply_finds_it_busy(lab: Lab, workspace: Path) -> None:
    gate = "- name: failing\n  hosts: all\n  tasks:\n    - name: it is not so\n      ansible.builtin.fail: {msg: as expected}\n    - name: never\n      ansible.builtin.command: {cmd: 'true'}\n"
    profile = write(workspace, "failing", gate=gate)
    instance_id = lab.new_id("failing")
    first = start(lab, instance_id, "apply", profile.name, "--instance-id", instance_id, "--json", cwd=workspace)
    wait_until(first.phases, "the first run has begun", 60)
    second = run(lab, "apply", profile.name, "--instance-id", instance_id, cwd=workspace)
    assert second.code == 7, second.stderr
    assert str(first.process.pid) in second.stderr
    ended = first.wait()
    assert ended.code == 1, ended.stderr
    assert ended.report["outcome"] == "failed"
    assert ended.report["gates"][0]["tasks"][0]["outcome"] == "failed"
    assert "as expected" in ended.report["gates"][0]["tasks"][0]["message"]
    assert ended.report["residue"] == []
    assert_nothing_left(lab, instance_id)


@pytest.mark.parametrize("phase", ["boot", "gate sleeping"])
def test_ctrl_c_ends_cleanly(lab: Lab, workspace: Path, phase: str) -> None:
    """Row 41."""
    gate = "- name: sleeping\n  hosts: all\n  tasks:\n    - name: for long\n      ansible.builtin.command: {cmd: sleep 600}\n"
    profile = write(workspace, "sleeping", gate=gate)
    instance_id = lab.new_id(f"ctrl-c-{phase.split()[0]}")
    cold = ["--cold"] if phase == "boot" else []
    started = start(lab, instance_id, "apply", profile.name, "--instance-id", instance_id, *cold, cwd=workspace)
    wait_until(lambda: phase in started.phases() or started.process.poll() is not None, f"the phase {phase} has begun", 600)
    started.interrupt()
    ended = started.wait(120)
    assert ended.code == 130, ended.stderr
    report = json.loads((lab.home.runs / instance_id / "latest" / "report.json").read_text())
    assert (report["outcome"], report["residue"]) == ("interrupted", [])
    assert_nothing_left(lab, instance_id)


def test_an_interrupt_while_text_is_executed_keeps_the_exit_code(tmp_path: Path) -> None:
    """The standard library executes text where a dataclass or a named tuple is made, so also while modules are imported."""
    text = "import os, signal\\nos.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(9): pass"
    (tmp_path / "interrupted.py").write_text(
        f"import ktrdr_vm.cli.main as program\nprogram.cli.main = lambda **_: exec('{text}')\nprogram.main()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == "ktrdr-vm: interrupted\n"


@pytest.mark.parametrize(("number", "word"), [("SIGTERM", "cleaned"), ("SIGHUP", "cleaned"), ("SIGINT", "")])
def test_only_a_second_ctrl_c_cuts_the_end_short(tmp_path: Path, number: str, word: str) -> None:
    (tmp_path / "twice.py").write_text(
        "import os, signal, time\nimport ktrdr_vm.cli.main as program\n\n\n"
        "def work(**_):\n    try:\n"
        f"        os.kill(os.getpid(), signal.{number})\n        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        f"        os.kill(os.getpid(), signal.{number})\n        time.sleep(0.2)\n        print('cleaned', flush=True)\n        raise\n\n\n"
        "program.cli.main = work\nprogram.main()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "twice"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (130, word), ended.stderr


def test_a_profile_that_may_not_run_starts_nothing(lab: Lab, workspace: Path) -> None:
    profile = write(workspace, "lan", gate="- hosts: all\n  tasks: []\n", extra="egress: {allow: [{cidr: 192.168.77.9/32, ports: [80]}]}\n")
    instance_id = lab.new_id("refused")
    ended = run(lab, "apply", profile.name, "--instance-id", instance_id, cwd=workspace)
    assert ended.code == 2, ended.stderr
    assert "reserved range" in ended.stderr and "lan-profile.yaml:" in ended.stderr
    assert not (lab.home.runs / instance_id).exists()
    assert_nothing_left(lab, instance_id)
