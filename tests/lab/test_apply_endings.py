"""How `apply` ends when it does not pass: its exit code, its report, and still nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.lab import Lab
from laboratory.recorder import wait_until

pytestmark = pytest.mark.usefixtures("image")


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
    wait_until(
        lambda: phase in started.phases() or started.process.poll() is not None, f"the phase {phase} has begun", 600
    )
    started.interrupt()
    ended = started.wait(120)
    assert ended.code == 130, ended.stderr
    report = json.loads((lab.home.runs / instance_id / "latest" / "report.json").read_text())
    assert (report["outcome"], report["residue"]) == ("interrupted", [])
    assert_nothing_left(lab, instance_id)


def test_destroy_force_ends_a_run_in_good_order(lab: Lab, workspace: Path) -> None:
    gate = "- name: waiting\n  hosts: all\n  tasks:\n    - name: for long\n      ansible.builtin.command: {cmd: sleep 600}\n"
    profile = write(workspace, "waiting", gate=gate)
    instance_id = lab.new_id("forced")
    started = start(lab, instance_id, "apply", profile.name, "--instance-id", instance_id, cwd=workspace)
    wait_until(lambda: "gate waiting" in started.phases() or started.process.poll() is not None, "the gate runs", 600)
    refused = run(lab, "destroy", instance_id)
    assert refused.code == 7 and "destroy --force" in refused.stderr, refused.stderr
    forced = run(lab, "destroy", "--force", instance_id)
    assert forced.code == 0 and "residue: none" in forced.stdout, forced.stderr
    assert started.wait(60).code == 130
    report = json.loads((lab.home.runs / instance_id / "latest" / "report.json").read_text())
    assert (report["outcome"], report["reason"], report["residue"]) == ("interrupted", "", [])
    assert_nothing_left(lab, instance_id)


def test_when_the_time_is_nearly_over_the_work_comes_back(lab: Lab, workspace: Path) -> None:
    """SIGUSR1 of a scheduler: what the workload committed until then is fetched, and it does not run on."""
    repository = workspace / "limited"
    repository.mkdir()
    profile = write(
        repository,
        "limited",
        gate="- hosts: all\n  tasks: []\n",
        extra="workspace: {source: ., target: /workspace}\nartifacts: [/tmp/notes]\n"
        'workload: {command: [sh, -c, "echo x > y; git add y; git commit -qm y; echo until now > /tmp/notes; sleep 600"]}\n',
    )
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "base"]):
        subprocess.run(["git", *settings, *words], cwd=repository, check=True, timeout=60)
    instance_id = lab.new_id("limited")
    started = start(lab, instance_id, "apply", profile.name, "--instance-id", instance_id, cwd=repository)
    wait_until(lambda: "workload" in started.phases() or started.process.poll() is not None, "the workload runs", 600)
    wait_until(lambda: run(lab, "exec", instance_id, "--", "cat", "/tmp/notes").code == 0, "it has committed", 60)
    started.process.send_signal(signal.SIGUSR1)
    ended = started.wait(120)
    assert ended.code == 130, ended.stderr
    run_folder = lab.home.runs / instance_id / "latest"
    report = json.loads((run_folder / "report.json").read_text())
    assert (report["outcome"], report["reason"], report["residue"]) == ("interrupted", "limit", [])
    assert [path for one in report["commits"] for path in one["changed"]] == ["y"], ended.stderr
    assert [path.read_text() for path in run_folder.rglob("notes") if path.is_file()] == ["until now\n"]
    assert "SIGUSR1" in report["message"]
    assert_nothing_left(lab, instance_id)


def test_an_interrupt_while_text_is_executed_keeps_the_exit_code(tmp_path: Path) -> None:
    """The standard library executes text where a dataclass or a named tuple is made, so also while modules are
    imported."""
    text = "import os, signal\\nos.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(9): pass"
    (tmp_path / "interrupted.py").write_text(
        f"import ktrdr_vm.cli.main as program\nprogram.cli.main = lambda **_: exec('{text}')\nprogram.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == "ktrdr-vm: interrupted\n"


@pytest.mark.parametrize(
    ("number", "word"),
    [("SIGTERM", "cleaned"), ("SIGHUP", "cleaned"), ("SIGQUIT", "cleaned"), ("SIGUSR1", "cleaned"), ("SIGINT", "")],
)
def test_only_a_second_ctrl_c_cuts_the_end_short(tmp_path: Path, number: str, word: str) -> None:
    (tmp_path / "twice.py").write_text(
        "import os, signal, time\nimport ktrdr_vm.cli.main as program\n\n\n"
        "def work(**_):\n    try:\n"
        f"        os.kill(os.getpid(), signal.{number})\n        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        f"        os.kill(os.getpid(), signal.{number})\n        time.sleep(0.2)\n        print('cleaned', flush=True)\n        raise\n\n\n"
        "program.cli.main = work\nprogram.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "twice"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (130, word), ended.stderr


def test_a_profile_that_may_not_run_starts_nothing(lab: Lab, workspace: Path) -> None:
    profile = write(
        workspace,
        "lan",
        gate="- hosts: all\n  tasks: []\n",
        extra="egress: {allow: [{cidr: 192.168.77.9/32, ports: [80]}]}\n",
    )
    instance_id = lab.new_id("refused")
    ended = run(lab, "apply", profile.name, "--instance-id", instance_id, cwd=workspace)
    assert ended.code == 2, ended.stderr
    assert "reserved range" in ended.stderr and "lan-profile.yaml:" in ended.stderr
    assert not (lab.home.runs / instance_id).exists()
    assert_nothing_left(lab, instance_id)
