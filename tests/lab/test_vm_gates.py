"""The demo stack broken in seven ways: each fails exactly its own task of the Startability Gate. One VM serves them
all, through `gate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory.browser import read_first_screen, running_browser
from laboratory.command import run
from laboratory.instances import LabInstance
from laboratory.lab import Lab
from selenium import webdriver

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.report.decode import decode
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.model import GateResult, RunReport

# Folder of examples/demo-stack/broken, the task that must fail, and what its evidence must say.
BROKEN = {
    "bad-compose-file": ("configuration valid", "eight-thousand"),
    "failing-dockerfile": ("containers build", "the package index is damaged"),
    "exiting-service": ("services start", "worker: no queue is configured"),
    "failing-health-check": ("health checks pass", "worker"),
    "api-answers-500": ("API answers", "500"),
    "wrong-database-password": (
        "database reachable",
        "the database answers, but the API reports that it is not available",
    ),
    "unstoppable-container": ("clean teardown", "did not stop within"),
}
# What waits for a working stack is generous; what waits for a broken one is short.
HURRY = {
    "settle_seconds": "6",
    "health_timeout": "150",
    "unhealthy_seconds": "4",
    "stop_timeout": "6",
    "api_retries": "2",
}


def test_every_way_is_tried() -> None:
    assert {path.name for path in Path(PROJECT, "examples/demo-stack/broken").iterdir()} == set(BROKEN)


def gate(lab: Lab, instance: LabInstance, source: str) -> tuple[int, dict[str, Any]]:
    variables = [
        word for name, value in {**HURRY, "project_src": source}.items() for word in ("--var", f"{name}={value}")
    ]
    ended = run(
        lab, "gate", instance.instance_id, "startability", *variables, "--json", limit=600, cwd=instance.workspace
    )
    assert ended.stdout.strip(), ended.stderr
    return ended.code, json.loads(ended.stdout)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with running_browser() as driver:
        yield driver


def make_report(instance: LabInstance, result: dict[str, Any]) -> RunReport:
    """The report of a run of which this gate is all."""
    return RunReport(
        instance.instance_id,
        "20260101T000000Z-abcd",
        "startability",
        "sandbox",
        "p" * 64,
        "i" * 64,
        "failed",
        1,
        result["started_at"],
        result["duration_s"],
        gates=(decode(GateResult, result),),
    )


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stack_fails_its_own_task(
    lab: Lab,
    instance: LabInstance,
    name: str,
    browser: webdriver.Chrome,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
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
    path = tmp_path / "report.html"
    path.write_text(render_html(make_report(instance, result)), encoding="utf-8")
    browser.get(path.as_uri())
    (lab.scratch / "screens").mkdir(exist_ok=True)
    browser.save_screenshot(str(lab.scratch / "screens" / f"{name}.png"))
    first = read_first_screen(browser)
    assert task in first and said in first, "the first screen of the report names the cause"
    # Whatever failed, the stack was taken down again.
    left = instance.shell(
        f"docker ps -aq --filter label=com.docker.compose.project={instance.instance_id}; docker volume ls -q; docker network ls -q --filter type=custom"
    )
    assert left == (0, "")
