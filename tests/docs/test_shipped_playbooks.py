"""What runs here runs under Ansible too: its own parser takes every shipped playbook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT


@pytest.mark.parametrize("playbook", sorted(Path(PROJECT, "playbooks").glob("*.yaml")), ids=lambda path: path.stem)
def test_ansible_takes_it(playbook: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "ANSIBLE_LOCAL_TEMP": str(tmp_path), "LC_ALL": "C.UTF-8"}
    words = [str(Path(sys.executable).with_name("ansible-playbook")), "--syntax-check", "-i", "guest,", str(playbook)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
