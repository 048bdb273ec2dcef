"""`ktrdr-vm verify` as a CI job uses it: a commit that passes, a branch that weakens its own gates, a forge that
lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run
from laboratory.lab import Lab

pytestmark = pytest.mark.usefixtures("image")

PROFILE = """\
version: 1
name: ci
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
secrets:
  - {name: token, source: {env: KTRDR_ABSENT}}
gates: [startability]
"""
PLAYBOOK = """\
- name: startability
  hosts: all
  tasks:
    - name: the app adds
      ansible.builtin.command: {cmd: "python3 -c 'import app; assert app.add(2, 3) == 5'", chdir: /workspace}
    - name: nothing uncommitted is there
      ansible.builtin.command: {cmd: test ! -e draft.txt, chdir: /workspace}
"""


def git(folder: Path, *words: str) -> str:
    import subprocess

    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(place: Path, message: str, **files: str) -> str:
    for name, text in files.items():
        path = place / {"profile": "ktrdr.yaml", "playbook": "playbooks/startability.yaml", "app": "app.py"}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(place, "add", ".")
    git(place, "commit", "-qm", message)
    return git(place, "rev-parse", "HEAD")


def test_a_commit_is_judged_attested_and_bundled_and_a_weakened_gate_does_not_count(lab: Lab) -> None:
    place = lab.scratch / "verified"
    place.mkdir()
    git(place, "init", "-q")
    base = commit(place, "base", profile=PROFILE, playbook=PLAYBOOK, app="def add(a, b):\n    return a - b\n")
    git(place, "checkout", "-qb", "work")
    good = commit(place, "It adds", app="def add(a, b):\n    return a + b\n")
    bad = commit(
        place,
        "All green",
        app="def add(a, b):\n    return 5 * a\n",
        playbook=PLAYBOOK.replace("app.add(2, 3) == 5", "True"),
    )
    (place / "draft.txt").write_text("uncommitted")
    (place / "app.py").write_text("uncommitted")
    log, script = lab.scratch / "forge.log", lab.scratch / "forge.sh"
    script.write_text(f'#!/bin/sh\ncat >> {log}\necho >> {log}\necho \'{{"state": "success"}}\'\nexit 9\n')
    script.chmod(0o755)

    passed = run(
        lab, "verify", good, "--instance-id", lab.new_id("good"), "--notify", str(script), "--target", "https://ci.test/1",
        "--attestation", str(lab.scratch / "good.json"), "--json", cwd=place, limit=1800,
    )  # fmt: skip
    assert passed.code == 0, passed.stderr
    report = json.loads(passed.stdout)
    assert (report["base_commit"], report["verification"]["commit"], report["verification"]["clean"]) == (
        base,
        good,
        True,
    )
    assert "failed with exit code 9" in passed.stderr
    assert_nothing_left(lab, report["instance_id"])
    key = lab.home.attestation_public_key
    words = ("verify-attestation", str(lab.scratch / "good.json"), "--key", str(key), "--commit")
    assert run(lab, *words, good).code == 0 and run(lab, *words, bad).code == 2

    failed = run(
        lab,
        "verify",
        "work",
        "--instance-id",
        lab.new_id("bad"),
        "--notify",
        str(script),
        "--json",
        cwd=place,
        limit=1800,
    )
    assert failed.code == 1, failed.stderr
    judged = json.loads(failed.stdout)
    assert judged["verification"]["commit"] == bad and any(
        "playbooks/startability.yaml" in line for line in judged["first_lines"]
    )
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["state"], one["sha"]) for one in told] == [
        ("pending", good),
        ("success", good),
        ("pending", bad),
        ("failure", bad),
    ]
    assert told[1]["target"] == "https://ci.test/1" and told[3]["description"] == "failed: startability"

    made = run(lab, "bundle", report["instance_id"], "--json")
    assert made.code == 0, made.stderr
    folder = Path(json.loads(made.stdout)["directory"])
    assert len(list((folder / "patches").iterdir())) == 1
    whole = (
        "verify-attestation",
        str(folder / "attestation.intoto.json"),
        "--key",
        str(key),
        "--commit",
        good,
        "--files",
        str(folder),
    )
    assert run(lab, *whole).code == 0
    (folder / "PULL_REQUEST.md").write_text("All is well.")
    assert run(lab, *whole).code == 2
    assert (place / "app.py").read_text() == "uncommitted" and git(place, "rev-parse", "HEAD") == bad
