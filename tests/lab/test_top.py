"""`top` as a person sees it: in tmux, 80 columns by 24 lines, without colour, on an instance that asks for
something."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.command import PROGRAM, assert_nothing_left, run, start
from laboratory.lab import Lab

pytestmark = pytest.mark.usefixtures("image")

PROFILE = """\
version: 1
name: watched
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
mode: interactive
"""
ASK = [
    "ktrdr-escalate", "network", "models.test.lab", "443", "--seconds", "120", "--blocked", "the model is not there", "--why", "so",
    "--option", "wait", "--recommendation", "allow", "--decision", "may I", "--evidence", "log",
]  # fmt: skip


class Terminal:
    """A tmux server of its own."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        line = shlex.join(
            ["env", "NO_COLOR=1", "TERM=screen", *[f"{name}={value}" for name, value in environment.items()], *command]
        )
        self._call("new-session", "-d", "-x", "80", "-y", "24", line)
        self._call("set-option", "-g", "remain-on-exit", "on")

    def _call(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True, timeout=30).stdout

    def screen(self) -> str:
        return self._call("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def wait_for(self, *texts: str, limit: float = 60.0) -> str:
        end = time.monotonic() + limit
        while not all(text in (shown := self.screen()) for text in texts):
            assert time.monotonic() < end, shown
            time.sleep(0.3)
        return shown

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True, timeout=30)


@pytest.fixture
def kept(lab: Lab) -> Iterator[str]:
    place = lab.scratch / "watched"
    place.mkdir(exist_ok=True)
    (place / "profile.yaml").write_text(PROFILE)
    instance_id = lab.new_id("watched")
    made = start(lab, instance_id, "apply", "profile.yaml", "--instance-id", instance_id, cwd=place).wait()
    assert made.code == 0, made.stderr
    try:
        yield instance_id
    finally:
        run(lab, "destroy", "--yes", instance_id)
    assert_nothing_left(lab, instance_id)


def test_an_escalation_is_answered_and_the_instance_destroyed_from_the_screen(
    lab: Lab, kept: str, tmp_path: Path
) -> None:
    asked = run(lab, "exec", kept, "--", *ASK)
    assert asked.code == 0, asked.stderr
    terminal = Terminal(tmp_path, [*PROGRAM, "top"], {"PATH": os.environ["PATH"], **lab.environment})
    try:
        shown = terminal.wait_for(kept[:15], "running", "e1", "models.test.lab", "the model is not there")
        assert max(len(line) for line in shown.splitlines()) <= 80
        terminal.press("n")
        terminal.wait_for(f"deny e1 of {kept}")
        terminal.press("not today", "Enter")
        terminal.wait_for(f"escalations deny {kept}: done")
        assert "not today" in run(lab, "escalations", "show", kept, "e1").stdout
        # The terminal is the shell's, and comes back.
        terminal.press("Enter")
        terminal.wait_for("ktrdr@")
        terminal.press("hostname; exit", "Enter")
        terminal.wait_for("INSTANCE", "DOING")
        terminal.press("d")
        terminal.wait_for("y / n")
        terminal.press("y")
        terminal.wait_for("no streams", limit=120)
        terminal.press("q")
    finally:
        terminal.close()


def test_without_a_terminal_it_names_the_plain_mode(lab: Lab) -> None:
    refused = run(lab, "top")
    assert refused.code == 2 and "top --plain" in refused.stderr
