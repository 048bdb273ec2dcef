"""The script that removes a secret in the guest: it says that it is gone only when it is, and the guest's own timer
ends last."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ktrdr_vm.egress.expiry import TAKE
from ktrdr_vm.instance.resources.secret import _SWEEP, DIRECTORY


def run(tmp_path: Path, script: str, target: Path, **broken: str) -> tuple[int, str]:
    """Exit code, and what was asked of systemctl. `broken` are programs that fail."""
    tools = tmp_path / "bin"
    tools.mkdir()
    said = tmp_path / "said"
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    for name, line in broken.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "TARGET": str(target), "NAME": "token"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, timeout=20)
    return done.returncode, said.read_text() if said.exists() else ""


@pytest.mark.parametrize("content", ["the-value", "", None])
def test_it_is_gone_and_the_timer_too(tmp_path: Path, content: str | None) -> None:
    target = tmp_path / "token"
    if content is not None:
        target.write_text(content)
    code, said = run(tmp_path, TAKE, target)
    assert (code, target.exists(), said) == (0, False, "stop ktrdr-secret-token.timer\n")


@pytest.mark.parametrize(
    "broken", [{"rm": "exit 1"}, {"rm": "exit 0"}, {"dd": "exit 1"}], ids=["rm fails", "rm lies", "dd fails"]
)
def test_what_stays_is_said_and_its_timer_stays(tmp_path: Path, broken: dict[str, str]) -> None:
    target = tmp_path / "token"
    target.write_text("the-value")
    code, said = run(tmp_path, TAKE, target, **broken)
    assert code != 0 and said == ""


def test_a_sweep_that_leaves_something_fails(tmp_path: Path) -> None:
    place = tmp_path / "secrets"
    place.mkdir()
    for name in ("a", "b"):
        (place / name).write_text("x")
    script = _SWEEP.replace(DIRECTORY, str(place))
    assert run(tmp_path, script, place, rm='case "$*" in *a) exit 1;; esac; exec /bin/rm "$@"')[0] == 1
    assert sorted(path.name for path in place.iterdir()) == ["a"]
