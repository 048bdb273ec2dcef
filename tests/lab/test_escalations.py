"""Escalations on a real VM: asked in the guest, answered on the host, felt on the wire; a run that stops and is taken
up again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.lab import Lab
from laboratory.recorder import wait_until

pytestmark = pytest.mark.usefixtures("image")

PROFILE = """\
version: 1
name: asking
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
workload: {command: [sh, agent.sh], timeout: 20m}
gates: [./gate.yaml]
verify: same
"""
SIX = "--blocked it --why so --option wait --recommendation allow --decision 'may I' --evidence log"
# It asks for a host and for a decision, tries the host before and after, and fails when the answers are not what they
# should be.
AGENT = f"""\
set -eu
if [ ! -e asked ]; then
  touch asked
  ! curl -sS --max-time 20 http://evil.test.lab/ || exit 90
  ktrdr-escalate network evil.test.lab 80 --seconds 120 {SIX}
  ktrdr-escalate decision {SIX} || true
  echo "I stop here and wait for an answer"
  exit 3
fi
ktrdr-escalate list
ktrdr-escalate show e1
curl -sS --fail --max-time 60 http://evil.test.lab/
! curl -sS --max-time 20 http://allowed.test.lab/ || exit 91
ktrdr-escalate show e2 && exit 92
ktrdr-escalate secret token {SIX} --wait --timeout 300
grep -q canary /run/secrets/token && cat /run/secrets/token
"""
GATE = "- name: after\n  hosts: all\n  tasks:\n    - name: it goes on\n      ansible.builtin.command: {cmd: 'true'}\n"


@pytest.fixture(scope="module")
def workspace(lab: Lab) -> Path:
    place = lab.scratch / "asking"
    place.mkdir()
    for name, text in (("profile.yaml", PROFILE), ("agent.sh", AGENT), ("gate.yaml", GATE)):
        (place / name).write_text(text)
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
        subprocess.run(["git", *settings, *words], cwd=place, check=True, capture_output=True)
    return place


def test_a_run_stops_at_an_escalation_and_goes_on_with_the_answer(lab: Lab, workspace: Path) -> None:
    instance_id = lab.new_id("asking")
    stopped = start(
        lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, "--json", cwd=workspace
    ).wait()
    assert (stopped.code, stopped.report["outcome"], stopped.report["kept"]) == (6, "escalated", True), stopped.stderr
    assert [(one["id"], one["kind"], one["state"]) for one in stopped.report["escalations"]] == [
        ("e1", "network", "pending"), ("e2", "decision", "pending"),
    ]  # fmt: skip
    assert "escalations show" in stopped.stderr
    run_id = stopped.report["run_id"]

    early = run(lab, "apply", "--continue", instance_id, cwd=workspace)
    assert early.code == 6 and "waits for an answer" in early.stderr
    listed = run(lab, "escalations", "list", instance_id)
    assert "e1   pending" in listed.stdout
    (shown,) = [line for line in run(lab, "list").stdout.splitlines() if line.startswith(instance_id)]
    assert "suspended" in shown and shown.endswith("e1,e2")
    # More than was asked, without a reason, or against the owner's line: refused, and nothing is given.
    for words in (["--seconds", "9999"], ["--port", "22"], ["--host", "allowed.test.lab"]):
        refused = run(lab, "escalations", "approve", instance_id, "e1", "--reason", "x", *words)
        assert refused.code == 2, refused.stderr
    assert run(lab, "escalations", "approve", instance_id, "e1", "--reason", " ").code == 2
    assert run(lab, "escalations", "approve", instance_id, "e1", "--reason", "for this once").code == 0
    assert run(lab, "escalations", "deny", instance_id, "e2", "--reason", "not yours").code == 0

    going = start(lab, instance_id, "apply", "--continue", instance_id, "--json", cwd=workspace)
    wait_until(
        lambda: "e3   pending" in run(lab, "escalations", "list", instance_id).stdout,
        "the agent asks for a secret",
        300,
    )
    forbidden = run(
        lab,
        "escalations",
        "approve",
        instance_id,
        "e3",
        "--reason",
        "x",
        "--env",
        "AWS_SECRET_ACCESS_KEY",
        environment={"AWS_SECRET_ACCESS_KEY": "x"},
    )
    assert forbidden.code == 2 and "as a source of secrets" in forbidden.stderr
    given = run(
        lab,
        "escalations",
        "approve",
        instance_id,
        "e3",
        "--reason",
        "scoped",
        "--env",
        "KTRDR_X",
        environment={"KTRDR_X": "a-canary-of-the-lab"},
    )
    assert given.code == 0, given.stderr
    ended = going.wait()
    assert ended.code == 0, ended.stderr
    report = ended.report
    assert (report["run_id"], report["outcome"], report["residue"]) == (run_id, "passed", [])
    assert [(one["id"], one["state"]) for one in report["escalations"]] == [
        ("e1", "approved"),
        ("e2", "denied"),
        ("e3", "approved"),
    ]
    assert any(row["host"] == "evil.test.lab" and "grant:e1" in row["rule"] for row in report["egress"]["allowed"]), (
        report["egress"]
    )
    assert any(row["host"] == "evil.test.lab" for row in report["egress"]["denied"]), "the attempt before the answer"
    directory = lab.home.runs / instance_id / run_id
    for path in directory.rglob("*"):
        assert not path.is_file() or b"a-canary-of-the-lab" not in path.read_bytes(), path
    assert_nothing_left(lab, instance_id)
