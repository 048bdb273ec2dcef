"""From a clone of a project without a profile to the first verdict: two commands, and how long they take."""

from __future__ import annotations

import shutil
import subprocess
import time
from datetime import datetime

import pytest
from laboratory.command import run, start
from laboratory.lab import Lab

from ktrdr_vm.host.paths import PROJECT


@pytest.mark.full
@pytest.mark.usefixtures("image")
def test_two_commands_from_a_clone_to_a_verdict(lab: Lab) -> None:
    place = lab.scratch / "stranger"
    shutil.copytree(PROJECT / "examples/demo-stack", place, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "a project"]):
        subprocess.run(["git", *identity, *words], cwd=place, check=True, timeout=60, capture_output=True)
    instance_id = lab.new_id("stranger")
    began = time.time()
    assert run(lab, "init", cwd=place).code == 0
    started = start(lab, instance_id, "apply", "--instance-id", instance_id, cwd=place)
    ended = started.wait()
    verdicts = [event for event in started.events() if event["event"] == "gate_finished"]
    assert [(one["gate"], one["outcome"]) for one in verdicts[:1]] == [("starts", "passed")], ended.stderr
    seconds = datetime.fromisoformat(verdicts[0]["time"]).timestamp() - began
    print(f"first verdict: 2 commands, {seconds:.0f} s after the first, with a template to build")
    # The lab has no package source, which the second gate reads.
    assert [one["gate"] for one in verdicts] == ["starts", "isolation"] and "residue: none" in ended.stderr
