"""The commands of docs/first-profile.md: `init`, then `plan`, from any folder of a repository; at a terminal `init`
asks."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ktrdr_vm.host.paths import PROJECT

KTRDR = [sys.executable, "-m", "ktrdr_vm.cli.entry"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The demo stack as a repository of its own, without a profile."""
    place = tmp_path / "orders"
    shutil.copytree(PROJECT / "examples/demo-stack", place, ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, "-C", str(place), *words], check=True, timeout=60)
    return place


def run(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KTRDR_VM_HOME": str(where / "home"), "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [*KTRDR, *words], cwd=where, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_from_a_clone_to_a_plan(repository: Path) -> None:
    refused = run("plan", where=repository / "app")
    assert refused.returncode == 2 and "ktrdr-vm init" in refused.stderr and f"up to {repository}" in refused.stderr
    written = run("init", where=repository / "app")
    assert written.returncode == 0 and (repository / "ktrdr.yaml").is_file(), written.stderr
    for command in ("validate", "plan"):
        done = run(command, where=repository / "app")
        assert done.returncode == 0, done.stderr
    assert "orders--" in done.stdout and "digest " in done.stdout
    # The other clone of the same commit gets the same documents.
    assert run("init", "--dry-run", where=repository).stdout == ""


def test_at_a_terminal_it_asks_what_it_cannot_know(repository: Path) -> None:
    (repository / "dev").mkdir()
    (repository / "dev/compose.yaml").write_text("services: {one: {image: redis}}\n")
    ours, theirs = pty.openpty()
    try:
        started = subprocess.Popen(
            [*KTRDR, "init"],
            cwd=repository,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        os.close(theirs)
        os.write(ours, b"dev/compose.yaml\nagent 'unclosed\nagent -p 'do it'\n")
        assert started.wait(60) == 0
        said = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
    assert "Compose file to start" in said and "not a command line" in said
    profile = yaml.safe_load((repository / "ktrdr.yaml").read_text())
    assert profile["workload"]["command"] == ["agent", "-p", "do it"]
    assert "dev/compose.yaml" in (repository / "playbooks/starts.yaml").read_text()


@pytest.fixture
def playbooks(repository: Path) -> list[Path]:
    """The playbooks that `init` writes for a project in Python and Node with a compose file that needs `.env`."""
    (repository / "package.json").write_text('{"scripts": {"lint": "eslint ."}}')
    (repository / "requirements.txt").write_text("pytest\n")
    (repository / ".env.example").write_text("API_KEY=\n")
    assert run("init", where=repository).returncode == 0
    return sorted((repository / "playbooks").glob("*.yaml"))


def test_the_playbooks_are_ansibles_too(playbooks: list[Path]) -> None:
    assert [path.name for path in playbooks] == ["checks.yaml", "starts.yaml"]
    ansible = Path(sys.executable).with_name("ansible-playbook")
    for path in playbooks:
        done = subprocess.run(
            [ansible, "--syntax-check", "-i", "localhost,", path], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(path.parent), "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("api running 0\nmigrate exited 0\n", 0),
        ("api running 0\nworker exited 1\n", 1),
        ("api restarting 0\n", 1),
        ("", 1),
    ],
)
def test_a_container_that_ends_with_an_error_has_not_started(
    playbooks: list[Path], tmp_path: Path, states: str, code: int
) -> None:
    [play] = yaml.safe_load(playbooks[1].read_text())
    [line] = [
        task["ansible.builtin.shell"]["cmd"] for task in play["tasks"][0]["block"] if task["name"] == "services stay up"
    ]
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("docker", f"printf '%s' '{states}'"), ("sleep", ":")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = line.replace("{% raw %}", "").replace("{% endraw %}", "")
    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
