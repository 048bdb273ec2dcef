"""A real run elsewhere: from a client without libvirt, over SSH, to a far end on this host, and back. It is the run
that `apply` does here."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from laboratory.command import assert_nothing_left, start
from laboratory.far import FAR, Far
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from laboratory.recorder import wait_until

# sshd needs rights that the root of a world does not have.
pytestmark = [pytest.mark.usefixtures("image"), pytest.mark.host_root]

PROFILE = """\
version: 1
name: elsewhere
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
workload: {command: [sh, -c, "cp README results.txt && git add -A && git -c user.name=a -c user.email=a@x commit -qm work"], timeout: 5m}
gates: [startability]
artifacts: [/workspace/results.txt]
"""
QUICK = """\
- name: Startability Gate
  hosts: all
  tasks:
    - name: the workspace is there
      ansible.builtin.command: {cmd: cat /workspace/README}
    - name: a while
      ansible.builtin.pause: {seconds: 12}
"""
DEMO = """\
version: 1
name: demo
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
gates: [startability]
vars: {project_src: /workspace/stack}
"""
ASKS = """\
set -eu
ktrdr-escalate decision --blocked it --why so --option wait --recommendation allow --decision 'may I' --evidence log --wait
ktrdr-escalate show e1 > answer
! ktrdr-escalate network allowed.test.lab 80 --blocked it --why so --option wait --recommendation allow --decision 'may I' --evidence log --wait
git add answer && git -c user.name=a -c user.email=a@x commit -qm work
"""


@pytest.fixture
def far(lab: Lab, tmp_path: Path) -> Any:
    """The far end is the program itself, with the state directory of the lab; the client has one of its own, and no
    libvirt."""
    made = Far(tmp_path)
    words = " ".join(f"{name}={value}" for name, value in lab.environment.items())
    (tmp_path / "ktrdr-vm").write_text(f'#!/bin/sh\nexec env -i {words} {sys.executable} -m ktrdr_vm "$@"\n')
    made.client = (str(FAR.with_name("mac_client.py")),)
    yield made
    made.stop()


def make_project(far: Far) -> None:
    root = far.repository
    (root / "playbooks/startability.yaml").write_text(QUICK)
    (root / "ktrdr.yaml").write_text(PROFILE)
    far.git("add", "-A")
    far.git("commit", "--quiet", "--message", "two")
    (root / "README").write_text("uncommitted\n")


def wait_for_event(far: Far, request: str, phase: str) -> None:
    """Follow a request until a phase of its run has begun."""
    watched = far.start("watch", request, "--json")
    assert watched.stdout is not None
    for line in watched.stdout:
        event = json.loads(line)
        if (event["event"], event.get("phase")) == ("phase_started", phase):
            break
    watched.kill()
    watched.communicate()


def use_every_command(far: Far, name: str) -> None:
    """Reach a running instance at its place by each command that names one."""
    note, back = far.place / "note", far.place / "back"
    note.write_text("from here\n")
    far.call("cp", str(note), f"{name}:/tmp/note")
    assert far.call("exec", name, "--", "cat", "/tmp/note") == "from here\n"
    far.call("exec", name, "--", "sh", "-c", "exit 7", code=7)
    assert far.call("ssh", name, "cat", "/tmp/note") == "from here\n"
    far.call("cp", f"{name}:/workspace/README", str(back))
    assert back.read_text() == "uncommitted\n"
    far.call("exec", name, "--", "sudo", "sh", "-c", "echo from the console > /dev/console")
    wait_until(lambda: "from the console" in far.call("logs", name), "the console log has the line", 30)
    assert '"phase_started"' in far.call("events", name)
    assert "ask" in far.call("exec", name, "--", "ps", "-eo", "args")
    attached = far.start("attach", name, "--timeout", "5")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    forwarded = far.start("forward", name, f"{port}:22")
    try:
        assert forwarded.stderr is not None and str(port) in forwarded.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            assert connection.recv(8).startswith(b"SSH-2.0")
        attached.communicate(timeout=60)
    finally:
        for one in (attached, forwarded):
            one.send_signal(signal.SIGINT)
            one.communicate(timeout=60)


def list_files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} - {"origin.json"}


def read_verdict(report: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when and where it ran."""
    gates = [
        (gate["name"], gate["outcome"], [(task["name"], task["outcome"]) for task in gate["tasks"]])
        for gate in report["gates"]
    ]
    # The first of two runs builds the template.
    phases = [phase["name"] for phase in report["phases"] if phase["name"] != "template"]
    same = ("schema_version", "outcome", "exit_code", "profile", "mode", "image_digest", "base_commit", "residue")
    return {**{key: report[key] for key in same}, "gates": gates, "phases": phases}


def test_a_run_elsewhere_is_a_run_here(lab: Lab, far: Far) -> None:
    make_project(far)
    name = lab.new_id("elsewhere")
    began = time.monotonic()
    [request] = far.call("submit", "--on", "far", "--instance-id", name).split()
    watched = far.start("watch", request, "--json")
    assert watched.stdout is not None
    for line in watched.stdout:
        if '"a while"' in line or "the workspace is there" in line:
            break
    # While it runs, it is reached by the records of its request.
    assert far.call("exec", name, "--", "cat", "/workspace/README") == "uncommitted\n"
    assert "running" in far.call("list", "--on", "far")
    assert far.call("status", name).count("ok ") > 5
    watched.communicate(timeout=600)
    assert watched.returncode == 0
    there = json.loads(far.call("fetch", request, "--json"))
    took_there = time.monotonic() - began

    run = (far.near / "runs" / name / "latest").resolve()
    came = list_files(run)
    assert (run / "artifacts/workspace/results.txt").read_text() == "uncommitted\n"
    # The bundle is made here, of the commits that came, and says where they were judged.
    [commit] = there["commits"]
    assert far.git("rev-parse", commit["ref"]) == commit["commit"] != there["base_commit"]
    bundle = json.loads(far.call("bundle", name, "--json"))
    assert Path(bundle["archive"]).is_relative_to(far.near) and bundle["ref"] == commit["ref"]

    began = time.monotonic()
    here = start(lab, name, "apply", "--instance-id", name, "--json", cwd=far.repository).wait()
    took_here = time.monotonic() - began
    assert here.code == 0, here.stderr
    files = list_files((lab.home.runs / name / "latest").resolve())
    print(f"apply {took_here:.1f} s, elsewhere {took_there:.1f} s")
    assert read_verdict(there) == read_verdict(here.report)
    assert came == files
    assert_nothing_left(lab, name)
    assert [path.name for path in lab.home.workspaces.iterdir()] == []


def test_a_run_that_is_cancelled_midway_leaves_nothing(lab: Lab, far: Far) -> None:
    make_project(far)
    name = lab.new_id("cancelled")
    [request] = far.call("submit", "--on", "far", "--instance-id", name, "--gate", "startability").split()
    watched = far.start("watch", request, "--json")
    assert watched.stdout is not None
    for line in watched.stdout:
        if "the workspace is there" in line:
            break
    far.call("cancel", request)
    watched.communicate(timeout=300)
    assert watched.returncode == 130
    report = json.loads(far.call("fetch", request, "--json", code=130))
    assert (report["outcome"], report["residue"]) == ("interrupted", [])
    assert_nothing_left(lab, name)


@pytest.mark.full
def test_an_escalation_of_a_run_elsewhere_is_answered_from_here(lab: Lab, far: Far) -> None:
    make_project(far)
    (far.repository / "ask.sh").write_text(ASKS)
    profile = yaml.safe_load(PROFILE) | {"verify": "same", "workload": {"command": ["sh", "ask.sh"], "timeout": "5m"}}
    (far.repository / "ktrdr.yaml").write_text(yaml.safe_dump(profile | {"artifacts": ["/workspace/answer"]}))
    far.git("add", "ask.sh")
    far.git("commit", "--quiet", "--all", "--message", "three")
    name = lab.new_id("asking")
    [request] = far.call("submit", "--on", "far", "--instance-id", name).split()

    def find(escalation_id: str) -> dict[str, Any]:
        asked = {one["id"]: one for one in json.loads(far.call("escalations", "list", name, "--json"))}
        return asked.get(escalation_id, {})

    # Before its instance is there, there is nothing to list.
    wait_for_event(far, request, "workload")
    wait_until(lambda: find("e1"), "the workload asks", 120)
    assert find("e1")["state"] == "pending"
    use_every_command(far, name)
    far.call("escalations", "approve", name, "e1", "--reason", "the second way")
    wait_until(lambda: find("e2"), "the workload goes on with the answer, and asks again", 120)
    far.call("escalations", "deny", name, "e2", "--reason", "not that one")
    far.call("watch", request, limit=600)
    report = json.loads(far.call("fetch", request, "--json"))
    assert [(one["id"], one["state"], one["answer"]["reason"]) for one in report["escalations"]] == [
        ("e1", "approved", "the second way"),
        ("e2", "denied", "not that one"),
    ]
    assert "the second way" in (far.near / "runs" / name / "latest/artifacts/workspace/answer").read_text()
    assert_nothing_left(lab, name)


@pytest.mark.full
def test_the_demo_from_submit_to_bundle(lab: Lab, far: Far) -> None:
    workspace = make_workspace(far.place / "demo")
    (workspace / "ktrdr.yaml").write_text(DEMO)
    far.repository = workspace
    name = lab.new_id("demo")
    report = json.loads(far.call("apply", "--on", "far", "--instance-id", name, "--json", limit=1200))
    assert report["outcome"] == "passed" and len(report["gates"][0]["tasks"]) == 7
    assert Path(json.loads(far.call("bundle", name, "--json"))["archive"]).exists()
    assert_nothing_left(lab, name)
