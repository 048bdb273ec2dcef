"""The larger stack: its programs work together on this host, and in a VM the shipped gates judge it, from the profile
to the bundle."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.lab import Lab
from test_commits import git

from ktrdr_vm.evidence.junit_files import read_test_files
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.report.model import Artifact

STACK = PROJECT / "examples/larger-stack"
WORKLOAD = """\
extends: sandbox.yaml
version: 1
name: larger-stack-agent
image: debian-13-docker
workload: {command: [sh, -c, "echo '# done' >> README.md && git commit -qam work"], timeout: 10m}
"""


def make_repository(place: Path) -> Path:
    """As README.md says: a repository of the folder, with its submodule and its `.env`."""
    shutil.copytree(STACK, place, ignore=shutil.ignore_patterns("__pycache__"))
    pricing = place.parent / f"{place.name}-pricing"
    (place / "pricing").rename(pricing)
    for folder in (pricing, place):
        git(folder, "init", "-q", "-b", "main")
    git(pricing, "add", ".")
    git(pricing, "commit", "-qm", "pricing")
    git(place, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(pricing), "vendor/pricing")
    shutil.copy(place / ".env.example", place / ".env")
    (place / "agent.yaml").write_text(WORKLOAD)
    git(place, "add", ".")
    git(place, "commit", "-qm", "larger stack")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "larger")


def find_ports(count: int) -> list[str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(one.getsockname()[1]) for one in sockets]


@pytest.fixture
def running(place: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The six programs, without containers."""
    store, api, metrics, board = find_ports(4)
    common = {
        **os.environ, "PYTHONPATH": f"{place}:{place}/vendor/pricing", "PYTHONDONTWRITEBYTECODE": "1", "STORE_PORT": store,
        "STORE_URL": f"http://127.0.0.1:{store}", "STORE_TOKEN": "t", "STORE_FILE": str(tmp_path / "store.db"),
        "METRICS_TARGET": f"http://127.0.0.1:{api}/metrics", "BOARD_SOURCE": f"http://127.0.0.1:{metrics}/values",
        "API_URL": f"http://127.0.0.1:{api}", "BOARD_URL": f"http://127.0.0.1:{board}",
    }  # fmt: skip
    programs = {
        "store": ({}, []), "api": ({"LISTEN_PORT": api}, []), "metrics": ({"LISTEN_PORT": metrics}, []), "board": ({"LISTEN_PORT": board}, []),
        "pricer": ({"READY_FILE": str(tmp_path / "pricer")}, ["price"]), "mailer": ({"READY_FILE": str(tmp_path / "mailer")}, ["mail"]),
    }  # fmt: skip
    started = []
    for name, (own, words) in programs.items():
        module = "stack.worker" if words else f"stack.{name}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *words], cwd=place, env={**common, **own}, stdout=subprocess.DEVNULL
            )
        )
    yield common
    for one in started:
        one.terminate()
    assert [one.wait(timeout=20) for one in started] == [0] * 6


def test_its_programs_work_together_and_its_tests_write_junit(
    place: Path, running: dict[str, str], tmp_path: Path
) -> None:
    for _ in range(100):
        if (
            subprocess.run(["curl", "-fs", "-o", "/dev/null", f"{running['BOARD_URL']}/health"], check=False).returncode
            == 0
        ):
            break
        time.sleep(0.2)
    smoke = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "tests.smoke"],
        cwd=place,
        env=running,
        capture_output=True,
        text=True,
        check=False,
    )
    assert smoke.returncode == 0, smoke.stderr
    results = tmp_path / "results"
    results.mkdir()
    pytest_words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}/pytest.xml", "tests"]
    subprocess.run([sys.executable, *pytest_words], cwd=place, env=running, check=True, stdout=subprocess.DEVNULL)
    expected = 4
    if shutil.which("node"):
        words = [
            "--test",
            "--test-reporter=junit",
            f"--test-reporter-destination={results}/node.xml",
            "tests/prices.test.mjs",
        ]
        expected += subprocess.run(["node", *words], cwd=place, check=False, capture_output=True).returncode == 0
    rows = tuple(Artifact(f"results/{one.name}", str(one), one.stat().st_size, "") for one in sorted(results.iterdir()))
    found = read_test_files(rows, tmp_path)
    assert sum(len(one.cases) for one in found) == expected and not [one for one in found if one.problem]


def test_the_gates_are_the_shipped_ones_configured_by_vars_alone(place: Path) -> None:
    loaded = read_profile(place / "agent.yaml", place)
    assert loaded.profile.gates == ("startability", "unit", "smoke") and not (place / "playbooks").exists()
    assert (
        dict(loaded.profile.environment) == {"COMPOSE_FILE": "docker-compose.sandbox.yml"}
        and loaded.profile.workload is not None
    )


@pytest.mark.full
@pytest.mark.usefixtures("image")
def test_from_profile_to_bundle(lab: Lab) -> None:
    place = make_repository(lab.scratch / "larger")
    instance_id = lab.new_id("larger")
    ended = start(lab, instance_id, "apply", "agent.yaml", "--instance-id", instance_id, "--json", cwd=place).wait()
    report = ended.report
    assert ended.code == 0, ended.stderr
    assert [(gate["name"], gate["stage"], gate["outcome"]) for gate in report["gates"]] == [
        ("startability", "base", "passed"),
        *((name, "verification", "passed") for name in ("startability", "unit", "smoke")),
    ]
    assert any("beneath the commit" in line and ".env" in line for line in report["first_lines"]), report["first_lines"]
    assert sum(row["tests"] for row in report["tests"]) == 4, report["tests"]
    assert [row for row in report["tests"] if row["failures"] or row["errors"] or row["problem"]] == []
    assert_nothing_left(lab, instance_id)
    made = run(lab, "bundle", instance_id)
    assert made.code == 0, made.stderr
    page = Path(made.stdout.splitlines()[0])
    assert "Startability: passed" in page.read_text()
