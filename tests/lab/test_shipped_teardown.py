"""The teardown of the Startability Gate finds its stack by labels, whatever file the profile's COMPOSE_FILE names. A
real shell, no VM."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from ktrdr_vm.host.paths import PROJECT

# As Compose does: a file that a variable names must exist, also where the project is named.
DOCKER = """#!/bin/sh
case "$1" in
  compose) for one in $COMPOSE_FILE $COMPOSE_ENV_FILES; do [ -e "$one" ] || { echo "stat $one: no such file or directory" >&2; exit 14; }; done ;;
esac
"""


def find_script() -> str:
    [play] = yaml.safe_load((PROJECT / "playbooks/startability.yaml").read_text())
    [task] = play["tasks"][0]["always"]
    script = re.sub(r"{% (end)?raw %}", "", task["ansible.builtin.shell"]["cmd"])
    return re.sub(r"{{ project_src.*? }}", "workspace", script).replace("{{ stop_timeout | int }}", "5")


def test_a_compose_file_of_another_name_does_not_keep_the_stack(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    variables = {"COMPOSE_FILE": "docker-compose.sandbox.yml", "COMPOSE_ENV_FILES": "own.env", "COMPOSE_PROFILES": "x"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COMPOSE_PROJECT_NAME": "p", **variables}
    done = subprocess.run(
        ["sh", "-c", find_script()], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
