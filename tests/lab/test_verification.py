"""From a workload to a pull request: an honest agent whose work passes, and a hostile one whose lies do not cross
over."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.lab import Lab

pytestmark = pytest.mark.usefixtures("image")

APP = "def add(a, b):\n    return a {sign} b\n"
TEST = "import unittest\n\nfrom app import add\n\n\nclass Test(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n"
DOCKERFILE = 'FROM ktrdr-base:13\nCOPY app.py /srv/\nWORKDIR /srv\nCMD ["python3", "-c", "import app; assert app.add(2, 3) == {sum}"]\n'
# Startability asks Docker, the unit gate asks the tests. The planted bug is in neither until the agent has worked.
PLAYBOOK = """\
- name: {name}
  hosts: all
  tasks:
    - name: {task}
      ansible.builtin.command: {{cmd: "{line}", chdir: /workspace}}
"""
# Every gate needs a file that Git ignores, in the fresh VM as well.
SETTINGS = """\
    - name: the settings are there
      ansible.builtin.command: {cmd: test -s .env, chdir: /workspace}
"""
PROFILE = """\
version: 1
name: agent
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
workspace: {{source: ., target: /workspace, include: [.env]}}
secrets:
  - {{name: token, source: {{env: KTRDR_TOKEN}}}}
workload: {{command: [sh, agent.sh], timeout: 10m}}
gates: [startability, unit]
artifacts: [/workspace/results]
verify: {verify}
"""
HONEST = """\
set -eu
test -s /run/secrets/token && grep -q "$KTRDR_INSTANCE_ID" /etc/ktrdr/README.md && ssh-keygen -F github.com -f /etc/ssh/ssh_known_hosts >/dev/null
sed -i 's/a - b/a + b/' app.py
git commit -qam 'Addition adds'
echo 'It subtracted. Now it adds.' > .ktrdr/notes/summary.md
echo scratch > left-behind.txt
mkdir -p results && echo '<testsuite name="t" tests="1"/>' > results/work.xml
"""
HOSTILE = """\
set -eu
printf '#!/bin/sh\\nexit 0\\n' | sudo tee /usr/local/bin/docker /usr/local/bin/python3 >/dev/null
sudo chmod 755 /usr/local/bin/docker /usr/local/bin/python3
printf 'def add(a, b):\\n    return None\\n' > app.py
printf 'import unittest\\n' > test_app.py
sed -i 's/docker build .*/true"/' playbooks/startability.yaml
mkdir -p results && echo '<testsuite name="forged" tests="100"/>' > results/work.xml
git add -A && git commit -qm 'All tests pass'
"""


def make_workspace(place: Path, agent: str, *, verify: str) -> Path:
    (place / "playbooks").mkdir(parents=True)
    # The base starts (its container says what the bug says), so that the first gate passes before the agent has worked.
    (place / "app.py").write_text(APP.format(sign="-"))
    (place / "test_app.py").write_text(TEST)
    (place / "Dockerfile").write_text(DOCKERFILE.format(sum="-1 or app.add(2, 3) == 5"))
    (place / "agent.sh").write_text(agent)
    (place / "profile.yaml").write_text(PROFILE.format(verify=verify))
    for name, task, line in (
        (
            "startability",
            "the container starts",
            "sh -c 'docker build -q -t app . && docker run --rm --network none app'",
        ),
        ("unit", "the tests pass", "python3 -m unittest -q test_app"),
    ):
        (place / "playbooks" / f"{name}.yaml").write_text(PLAYBOOK.format(name=name, task=task, line=line) + SETTINGS)
    (place / ".gitignore").write_text(".env\n")
    (place / ".env").write_text("PORT=1\n")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-qm", "base")
    return place


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def apply(lab: Lab, instance_id: str, workspace: Path):
    words = ("apply", "profile.yaml", "--instance-id", instance_id, "--json")
    return start(lab, instance_id, *words, environment={"KTRDR_TOKEN": "a-token-of-this-run"}, cwd=workspace).wait()


def test_an_honest_agents_work_comes_home_verified_and_its_patches_pass_again(lab: Lab) -> None:
    place = make_workspace(lab.scratch / "honest", HONEST, verify="fresh")
    instance_id = lab.new_id("honest")
    ended = apply(lab, instance_id, place)
    report = ended.report
    assert ended.code == 0, ended.stderr
    assert [(gate["name"], gate["stage"], gate["outcome"]) for gate in report["gates"]] == [
        ("startability", "base", "passed"), ("startability", "verification", "passed"), ("unit", "verification", "passed"),
    ]  # fmt: skip
    judged = report["verification"]
    assert (judged["mode"], judged["outcome"], judged["startability"]) == ("fresh", "passed", "passed")
    assert git(place, "rev-parse", f"refs/ktrdr/{instance_id}/main") == judged["commit"] != report["base_commit"]
    assert any("2 uncommitted" in line for line in report["first_lines"]), report["first_lines"]
    assert any("beneath the commit" in line and ".env" in line for line in report["first_lines"]), report["first_lines"]
    assert {row["path"] for row in report["artifacts"] if row["path"]} >= {"notes/workspace/.ktrdr/notes/summary.md"}
    for name in (instance_id, judged["instance_id"]):
        assert_nothing_left(lab, name)

    lived_in = lab.new_id("honest-again")
    reproduced = run(
        lab,
        "apply",
        "--from-run",
        instance_id,
        "--instance-id",
        lived_in,
        environment={"KTRDR_TOKEN": "another"},
        cwd=place,
        limit=1200,
    )
    assert reproduced.code == 0, reproduced.stderr
    shown = run(
        lab, "exec", lived_in, "--", "sh", "-c", "cd /workspace && git rev-parse HEAD && cat app.py && ls /run/secrets"
    ).stdout
    assert judged["commit"] in shown and "a + b" in shown
    assert run(lab, "destroy", lived_in, "--yes").code == 0

    made = run(lab, "bundle", instance_id)
    assert made.code == 0, made.stderr
    page = Path(made.stdout.splitlines()[0])
    assert "It subtracted. Now it adds." in page.read_text() and "Startability: passed" in page.read_text()
    # Beneath the commit was a file that no commit has, so the verdict is not about the commit alone.
    assert (
        not judged["clean"] and not (page.parent / "attestation.intoto.json").exists() and "attestation:" in made.stderr
    )
    assert [one["instance_id"] for one in report["revisions"]] == [instance_id, judged["instance_id"]]
    git(lab.scratch, "clone", "-q", str(place), "fresh-clone")
    again = lab.scratch / "fresh-clone"
    (again / ".env").write_text("PORT=1\n")
    git(again, "am", "-q", *map(str, sorted((page.parent / "patches").iterdir())))
    (again / "again.yaml").write_text(
        (again / "profile.yaml").read_text().split("secrets:")[0] + "gates: [startability, unit]\n"
    )
    second = run(lab, "apply", "again.yaml", "--instance-id", lab.new_id("again"), "--json", cwd=again, limit=1200)
    assert second.code == 0, second.stderr


def test_a_hostile_agent_cannot_fake_the_verdict(lab: Lab) -> None:
    """The next test is this one without the protection."""
    place = make_workspace(lab.scratch / "hostile", HOSTILE, verify="fresh")
    instance_id = lab.new_id("hostile")
    ended = apply(lab, instance_id, place)
    report = ended.report
    assert (ended.code, report["outcome"]) == (1, "failed"), ended.stderr
    assert [(gate["name"], gate["stage"], gate["outcome"]) for gate in report["gates"]] == [
        ("startability", "base", "passed"), ("startability", "verification", "failed"), ("unit", "verification", "skipped"),
    ]  # fmt: skip
    shown = ended.stderr.split("FAILED", 1)[1][:1500]
    assert "changes the profile or playbooks: playbooks/startability.yaml" in shown
    assert "changes tests: test_app.py" in shown and "does not pass" in shown
    refused = run(lab, "bundle", instance_id)
    assert (refused.code, refused.stdout) == (1, "") and "is `failed`" in refused.stderr
    assert_nothing_left(lab, instance_id)
    assert_nothing_left(lab, report["verification"]["instance_id"])


@pytest.mark.full
def test_in_the_vm_it_used_the_hostile_agent_passes_and_the_report_says_that_this_is_weaker(lab: Lab) -> None:
    place = make_workspace(lab.scratch / "same", HOSTILE, verify="same")
    ended = apply(lab, lab.new_id("same"), place)
    assert ended.code == 0, ended.stderr
    assert ended.report["verification"]["mode"] == "same"
    assert any("weaker than a fresh VM" in line for line in ended.report["first_lines"])
