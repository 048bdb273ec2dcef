"""The demo stack broken in seven ways: each fails exactly its own task of the Startability Gate. One VM serves them all, through `gate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory.command import run
from laboratory.instances import LabInstance
from laboratory.lab import Lab

from ktrdr_vm.host.paths import PROJECT

pytestmark = pytest.mark.vm

# Folder of examples/demo-stack/broken, the task that must fail, and what its evidence must say.
BROKEN = {
    "bad-compose-file": ("configuration valid", "eight-thousand"),
    "failing-dockerfile": ("containers build", "the package index is damaged"),
    "exiting-service": ("services start", "worker: no queue is configured"),
    "failing-health-check": ("health checks pass", "worker"),
    "api-answers-500": ("API answers", "500"),
    "wrong-database-password": ("database reachable", "the database answers, but not to the API"),
    "unstoppable-container": ("clean teardown", "did not stop within"),
}
# What waits for a working stack is generous; what waits for a broken one is short.
HURRY = {"settle_seconds": "6", "health_timeout": "150", "unhealthy_seconds": "4", "stop_timeout": "6", "api_retries": "2"}


def test_every_way_is_tried() -> None:
    assert {path.name for path in Path(PROJECT, "examples/demo-stack/broken").iterdir()} == set(BROKEN)


def gate(lab: Lab, instance: LabInstance, source: str) -> tuple[int, dict[str, Any]]:
    variables = [word for name, value in {**HURRY, "project_src": source}.items() for word in ("--var", f"{name}={value}")]
    ended = run(lab, "gate", instance.instance_id, "startability", *variables, "--json", limit=600, cwd=instance.workspace)
    assert ended.stdout.strip(), ended.stderr
    return ended.code, json.loads(ended.stdout)[0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stack_fails_its_own_task(
    lab: Lab, instance: LabInstance, name: str, record_property: Callable[[str, object], None]
) -> None:
    task, said = BROKEN[name]
    code, made = instance.shell(
        f"rm -rf /srv/broken && cp -r /workspace/stack /srv/broken && cp -r /workspace/stack/broken/{name}/. /srv/broken/"
    )
    assert code == 0, made
    code, result = gate(lab, instance, "/srv/broken")
    record_property("seconds", {one["name"]: one["duration_s"] for one in result["tasks"]})
    outcomes = {one["name"]: one["outcome"] for one in result["tasks"]}
    assert [one for one, outcome in outcomes.items() if outcome == "failed"] == [task], outcomes
    assert (code, result["outcome"]) == (1, "failed")
    failed = next(one for one in result["tasks"] if one["name"] == task)
    assert said in json.dumps(failed), failed
    if name == "exiting-service":
        assert said in json.dumps(failed["evidence"]), "the logs of the failing container are in the report"
    # Whatever failed, the stack was taken down again.
    left = instance.shell(
        f"docker ps -aq --filter label=com.docker.compose.project={instance.instance_id}; docker volume ls -q; docker network ls -q --filter type=custom"
    )
    assert left == (0, "")
