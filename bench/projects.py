"""Rows about what a person comes back to: a project that was prepared, an instance that was suspended."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from laboratory.instances import make_workspace

from bench.machines import applied
from bench.place import DISK, LIMIT, MEMORY, PROGRAM, VCPUS, Place
from bench.prober import watch
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.templates.project import build_best, find_best

_PROFILE = f"""\
version: 1
name: stack
image: debian-13-docker
resources: {{vcpus: {VCPUS}, memory: {MEMORY}MiB, disk: {DISK}MiB}}
workspace: {{source: ., target: /workspace}}
gates: [startability]
vars: {{project_src: /workspace/stack}}
"""
_PREPARE = "prepare: {playbook: prepare.yaml, key: [stack/compose.yaml, stack/Dockerfile, stack/Dockerfile.db]}\n"
_PLAYBOOK = """\
- name: prepare
  hosts: all
  tasks:
    - name: layers
      ansible.builtin.command: {cmd: docker compose build, chdir: /workspace/stack}
"""
# The task of the Startability Gate after which the stack is healthy.
_HEALTHY = "health checks pass"


def prepared(place: Place) -> dict[str, float]:
    """From `apply` to the demo stack healthy, with its project prepared and without. The template of the project is
    there before."""
    workspace = _make_project(place)
    gathered = gather(workspace / "prepared.yaml", home=place.lab.home, workspace=workspace, instance_id="bench-stack")
    trusted = replace(gathered, policy=replace(gathered.policy, prepare_refs=("main",)))
    home, plan = place.lab.home, trusted.plan
    said: list[str] = []
    if find_best(home, trusted, plan, place.image, said.append) is None:
        build_best(home, trusted, plan, place.image, Libvirt(), said.append)
    return {
        "prepared.healthy": _measure(place, workspace, "prepared"),
        "unprepared.healthy": _measure(place, workspace, "unprepared"),
    }


def _make_project(place: Place) -> Path:
    workspace = place.lab.scratch / "project"
    if not workspace.exists():
        workspace.mkdir()
        make_workspace(workspace)
        (workspace / "prepare.yaml").write_text(_PLAYBOOK)
        (workspace / "unprepared.yaml").write_text(_PROFILE)
        (workspace / "prepared.yaml").write_text(_PROFILE + _PREPARE)
        settings = ["-c", "user.name=bench", "-c", "user.email=bench@test.lab"]
        for words in (["add", "-A"], ["commit", "-q", "-m", "a project"]):
            subprocess.run(["git", *settings, *words], cwd=workspace, check=True)
    return workspace


def _measure(place: Place, workspace: Path, kind: str) -> float:
    name = f"bench-{kind}"
    runs = place.lab.home.runs / name
    shutil.rmtree(runs, ignore_errors=True)
    began = time.time()
    place.command("apply", workspace / f"{kind}.yaml", "--workspace", workspace, "--instance-id", name)
    for line in (runs / "latest" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "task_finished" and event.get("task") == _HEALTHY:
            return datetime.fromisoformat(event["time"]).timestamp() - began
    raise RuntimeError(f"the stack of {kind} was never healthy")


def resting(place: Place) -> dict[str, float]:
    """An idle fork goes to the disk and comes back."""
    with applied(place, "bench-rest"):
        saved = place.command("suspend", "bench-rest")
        began = time.monotonic()
        process = subprocess.Popen(
            [PROGRAM, "resume", "bench-rest"],
            env=place.lab.environment,
            cwd=place.lab.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seen = watch(lambda: place.find_way("bench-rest"), began)
        if process.wait(LIMIT) != 0:
            raise RuntimeError("resume failed")
        return {"suspend": saved, "resume.ssh": seen.wait().ssh}
