"""`ktrdr-vm apply` as a person runs it: the main job, its evidence, its exit codes, and nothing left."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from laboratory import world
from laboratory.command import Ended, assert_nothing_left, start
from laboratory.instances import make_workspace
from laboratory.lab import Lab

pytestmark = pytest.mark.usefixtures("image")

CANARY = "CANARY-5f3a/9+b_c d0e1"
SEVEN = [
    "configuration valid",
    "containers build",
    "services start",
    "health checks pass",
    "API answers",
    "database reachable",
    "clean teardown",
]
PROFILE = """\
version: 1
name: main-job
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
egress:
  allow:
    - {host: allowed.test.lab, ports: [80]}
secrets:
  - {name: canary, source: {env: KTRDR_CANARY}, path: /run/secrets/canary, mode: "0400", ttl: 1h}
gates: [startability, ./gates/after.yaml]
vars: {project_src: /workspace/stack}
artifacts: [/srv/results, /srv/nothing]
"""
# After the Startability Gate: one fetch that is allowed, one that is not, a secret that is said aloud, and artifacts
# that lie.
AFTER = """\
- name: after
  hosts: all
  tasks:
    - name: an allowed fetch
      ansible.builtin.command: {cmd: "curl -sS --fail --max-time 60 http://allowed.test.lab/"}
    - name: a denied fetch
      ansible.builtin.command: {cmd: "curl -sS --max-time 60 http://evil.test.lab/"}
      ignore_errors: true
    - name: a denied address
      ansible.builtin.command: {cmd: "nc -z -w 2 203.0.113.66 22"}
      ignore_errors: true
    - name: the secret is said aloud
      ansible.builtin.shell:
        cmd: |
          cat /run/secrets/canary; echo
          base64 -w0 /run/secrets/canary; echo
          python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.stdin.read(), safe=""))' < /run/secrets/canary
      become: true
    - name: artifacts that lie
      ansible.builtin.shell:
        cmd: |
          set -e
          mkdir -p /srv/results/deep && cd /srv/results
          echo good > good.txt
          echo inside > deep/inside.txt
          echo '<testsuite><testcase name="good"/><testcase name="bad"><failure message="said so"/></testcase></testsuite>' > deep/junit.xml
          ln -s /etc/shadow link
          ln /etc/hostname hard
          mknod device c 1 3
          mkfifo fifo
          truncate -s 1T terabyte
          chmod 4755 good.txt
          printf 'x' > "$(printf 'control\\033[31m')"
          cp /run/secrets/canary leaked.txt
          python3 - <<'PY'
          import os
          os.chdir("/srv/results")
          for _ in range(20):
              os.mkdir("d" * 200)
              os.chdir("d" * 200)
          open("far", "w").close()
          PY
      become: true
    - name: a file of the guest's
      ansible.builtin.fetch: {src: /etc/hostname, dest: name, flat: true}
"""


@dataclass
class MainJob:
    instance_id: str
    ended: Ended
    directory: Path
    report: dict[str, Any]
    arrived: set[tuple[str, str, int]]

    def jsonl(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]

    def gate(self, name: str) -> dict[str, Any]:
        return next(gate for gate in self.report["gates"] if gate["name"] == name)


@pytest.fixture(scope="module")
def workspace(lab: Lab) -> Path:
    place = make_workspace(lab.scratch / "main-job")
    (place / "gates").mkdir()
    (place / "gates" / "after.yaml").write_text(AFTER)
    (place / "profile.yaml").write_text(PROFILE)
    return place


@pytest.fixture(scope="module")
def main_job(lab: Lab, workspace: Path) -> Iterator[MainJob]:
    """One apply; the tests below look at what it left and did not leave."""
    instance_id = lab.new_id("main")
    mark = lab.recorder.mark()
    words = ("apply", "profile.yaml", "--instance-id", instance_id, "--json")
    ended = start(lab, instance_id, *words, environment={"KTRDR_CANARY": CANARY}, cwd=workspace).wait()
    directory = lab.home.runs / instance_id / "latest"
    assert directory.exists(), ended.stderr
    yield MainJob(
        instance_id,
        ended,
        directory.resolve(),
        json.loads((directory / "report.json").read_text()),
        lab.recorder.endpoints(mark),
    )


def test_the_main_job_passes_and_leaves_nothing(lab: Lab, main_job: MainJob) -> None:
    assert main_job.ended.code == 0, main_job.ended.stderr
    assert main_job.report["outcome"] == "passed"
    assert main_job.report["residue"] == []
    assert "residue: none" in main_job.ended.stderr
    assert_nothing_left(lab, main_job.instance_id)


def test_the_report_says_what_the_contract_says(main_job: MainJob) -> None:
    report = main_job.report
    schema = {
        "type": "object",
        "required": "schema_version instance_id run_id profile mode plan_digest image_digest outcome started_at duration_s phases gates workload egress escalations artifacts residue".split(),
        "properties": {
            "schema_version": {"const": 1},
            "instance_id": {"const": main_job.instance_id},
            "mode": {"const": "sandbox"},
            "plan_digest": {"pattern": "^[0-9a-f]{64}$"},
            "image_digest": {"pattern": "^[0-9a-f]{64}$"},
            "started_at": {"pattern": "^[0-9-]{10}T[0-9:.]+Z$"},
            "duration_s": {"type": "number", "exclusiveMinimum": 0},
            "gates": {"items": {"required": ["name", "outcome", "duration_s", "tasks", "observed"]}},
            "phases": {"items": {"required": ["name", "duration_s"]}, "minItems": 5},
            "egress": {"required": ["allowed", "denied"]},
        },
    }
    jsonschema.validate(report, schema)
    for gate in report["gates"]:
        for task in gate["tasks"]:
            assert {"name", "module", "outcome", "changed", "duration_s", "message", "stdout", "stderr"} <= task.keys()
    assert json.loads(main_job.ended.stdout) == report


def test_the_gate_checks_all_seven_points(main_job: MainJob) -> None:
    gate = main_job.gate("startability")
    assert [task["name"] for task in gate["tasks"]] == SEVEN
    assert {task["outcome"] for task in gate["tasks"]} <= {"ok", "changed"}
    kept = gate["tasks"][-1]["stdout"]
    for service in ("api", "db", "worker"):
        assert f"/{main_job.instance_id}-{service}-1 is " in kept and f"{service}-1" in kept, (
            "which image, and what it said"
        )
    assert kept.count(" sha256:") >= 3 and " | " in kept


def test_one_fetch_is_allowed_and_the_denied_ones_are_named(main_job: MainJob) -> None:
    allowed, denied = main_job.report["egress"]["allowed"], main_job.report["egress"]["denied"]
    assert ("allowed.test.lab", 80) in {(row["host"], row["port"]) for row in allowed}
    assert {"evil.test.lab"} <= {row["host"] for row in denied}
    by_address = [row for row in denied if row["address"] == world.EVIL and row["port"] == 22]
    assert by_address and by_address[0]["count"] >= 1
    assert by_address[0]["during"] == "after: a denied address"
    for row in denied:
        assert {"host", "address", "port", "rule", "count", "first_at", "last_at", "during"} <= row.keys()
    assert "evil.test.lab" in main_job.ended.stderr
    assert main_job.arrived <= {("tcp", world.WEB, 80), ("udp", world.DNS, 53)}


def test_every_line_of_the_evidence_has_a_time_and_whose_it_is(main_job: MainJob) -> None:
    for name in ("events.jsonl", "egress.jsonl"):
        rows = main_job.jsonl(name)
        assert rows
        for row in rows:
            assert row["instance_id"] == main_job.instance_id
            assert row["time"].endswith("Z") and "T" in row["time"]
    assert {row["event"] for row in main_job.jsonl("events.jsonl")} >= {
        "run_started",
        "phase_started",
        "phase_finished",
        "resource",
        "run_finished",
    }


def test_junit_is_what_tools_read(main_job: MainJob) -> None:
    root = ElementTree.parse(main_job.directory / "junit.xml").getroot()
    suites = list(root.iter("testsuite"))
    assert {str(suite.get("name")).rsplit("/", 1)[-1] for suite in suites} >= {"startability", "after"}
    for suite in suites:
        cases = suite.findall("testcase")
        assert int(suite.get("tests", "-1")) == len(cases)
        assert int(suite.get("failures", "-1")) == sum(case.find("failure") is not None for case in cases)
    assert len([case for suite in suites for case in suite.findall("testcase")]) >= 12


def test_artifacts_come_back_safely(main_job: MainJob) -> None:
    """Row 28."""
    root = main_job.directory / "artifacts" / "srv" / "results"
    assert (root / "good.txt").read_text() == "good\n"
    assert (root / "deep" / "inside.txt").read_text() == "inside\n"
    for folder, folders, files in os.walk(main_job.directory / "artifacts"):
        for name in (*folders, *files):
            facts = os.lstat(Path(folder, name))
            assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode), name
            assert not facts.st_mode & 0o7000, name
            assert facts.st_size < 2**30
    rows = main_job.report["artifacts"]
    refused = {row["source"].rsplit("/", 1)[-1]: row["refused"] for row in rows if row["refused"]}
    assert refused["terabyte"].startswith("larger than")
    assert {"nothing"} <= refused.keys()
    assert not (root / "link").exists() and not (root / "device").exists() and not (root / "fifo").exists()
    assert "far" not in {path.name for path in root.rglob("*")}
    good = next(row for row in rows if row["source"].endswith("/good.txt"))
    assert (main_job.directory / good["path"]).read_text() == "good\n" and len(good["sha256"]) == 64
    assert "\x1b[31m" not in main_job.ended.stderr
    fetched = next(row for row in rows if row["gate"] == "after")
    content = (main_job.directory / fetched["path"]).read_bytes()
    assert content == f"{main_job.instance_id}\n".encode() and fetched["sha256"] == hashlib.sha256(content).hexdigest()


def test_what_the_tests_said_of_themselves_is_counted_and_merged(main_job: MainJob) -> None:
    [file] = main_job.report["tests"]
    assert (file["path"], file["tests"], file["failures"], file["observed"]) == (
        "artifacts/srv/results/deep/junit.xml",
        2,
        1,
        "guest",
    )
    cases = ElementTree.parse(main_job.directory / "junit.xml").getroot().findall(".//testcase[failure]")
    assert "said so" in {case.find("failure").get("message") for case in cases}  # type: ignore[union-attr]


FORMS = [CANARY.encode(), base64.b64encode(CANARY.encode()), urllib.parse.quote(CANARY, safe="").encode()]


def test_the_secret_is_masked_where_the_guest_said_it(main_job: MainJob) -> None:
    """Row 33."""
    task = next(task for task in main_job.gate("after")["tasks"] if task["name"] == "the secret is said aloud")
    lines = task["stdout"].split()
    assert lines and CANARY not in task["stdout"]
    for form in FORMS:
        assert form.decode() not in task["stdout"]


def test_the_secret_is_nowhere(lab: Lab, main_job: MainJob) -> None:
    """Row 31, afterwards: every file of the home and the evidence, but for the artifact that the guest itself made of
    it."""
    found = []
    for root in (
        lab.home.root,
        Path("/var/log/libvirt"),
        Path("/run/libvirt"),
        Path("/var/lib/libvirt"),
        Path("/run/ktrdr-vm"),
    ):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and not path.is_relative_to(lab.home.images):
                found += [str(path) for form in FORMS if holds(path, form)]
    assert [path for path in found if not path.endswith("artifacts/srv/results/leaked.txt")] == []
    assert not any(form in text.encode() for form in FORMS for text in (main_job.ended.stdout, main_job.ended.stderr))


def holds(path: Path, needle: bytes) -> bool:
    """Sparse files of gigabytes are read where they hold data."""
    done = subprocess.run(["grep", "-qaF", "--", needle.decode(), str(path)], timeout=120)
    return done.returncode == 0
