"""In a guest without python3, what needs it says so in one sentence with what to do, and what needs only sh works."""

from __future__ import annotations

import re

import pytest

from ktrdr_vm.gates.modules.base import NO_PYTHON
from ktrdr_vm.gates.modules.table import RUN
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.host.paths import PROJECT
from tests.fakes.guest import Answer, Ran
from tests.unit.gates.conftest import Gate

# One call of each module.
NEED_PYTHON = {
    "copy": "{content: x, dest: /tmp/x}",
    "file": "{path: /tmp/x, state: touch}",
    "find": "{paths: /tmp}",
    "get_url": "{url: 'http://a.example.org/', dest: /tmp/x}",
    "lineinfile": "{path: /tmp/x, line: x}",
    "replace": "{path: /tmp/x, regexp: x}",
    "setup": "{}",
    "slurp": "{src: /tmp/x}",
    "stat": "{path: /tmp/x}",
    "template": "{src: page, dest: /tmp/x}",
    "uri": "{url: 'http://a.example.org/'}",
    "wait_for": "{port: 80}",
}
NEED_SH = {
    "apt": "{name: x}",
    "assert": "{that: true}",
    "command": "{cmd: 'true'}",
    "debug": "{msg: x}",
    "docker_compose_v2": "{project_src: /srv}",
    "fail": "{msg: x}",
    "fetch": "{src: /tmp/x, dest: x, flat: true}",
    "git": "{repo: 'https://a.example.org/x', dest: /tmp/x}",
    "package": "{name: x, state: present}",
    "pause": "{seconds: 1}",
    "script": "{cmd: page}",
    "service": "{name: x, state: started}",
    "set_fact": "{x: 1}",
    "shell": "{cmd: 'true'}",
    "systemd": "{name: x, state: started}",
}


@pytest.fixture
def bare(gate: Gate) -> Gate:
    """A guest without python3."""

    def answer(ran: Ran) -> Answer | None:
        missing = "python3" in ran.line
        return GuestResult(127, b"", b"sh: 1: python3: not found\n") if missing else GuestResult(0, b"", b"")

    gate.guest.answer = answer
    (gate.root / "page").write_text("x\n")
    return gate


@pytest.mark.parametrize("module", NEED_PYTHON)
def test_what_needs_it_says_so(bare: Gate, module: str) -> None:
    (task,) = bare.run(f"- {module}: {NEED_PYTHON[module]}").tasks
    assert (task.outcome, task.message) == ("failed", f"{module} requires {NO_PYTHON}")


@pytest.mark.parametrize("module", NEED_SH)
def test_what_needs_only_sh_does_not_ask_for_it(bare: Gate, module: str) -> None:
    bare.run(f"- {module}: {NEED_SH[module]}")
    assert not any("python3" in ran.line for ran in bare.guest.ran)


def test_a_script_for_it(bare: Gate) -> None:
    (task,) = bare.run("- script: {cmd: page, executable: python3}").tasks
    assert (task.outcome, task.message) == ("failed", f"the script requires {NO_PYTHON}")
    bare.guest.answer = lambda ran: GuestResult(127 if "perl" in ran.line else 0, b"", b"")
    (task,) = bare.run("- script: {cmd: page, executable: perl}").tasks
    assert task.message == "the script requires perl in the guest, where it is not there"


def test_a_script_that_ends_with_this_code_is_no_missing_program(bare: Gate) -> None:
    bare.guest.answer = lambda ran: GuestResult(0 if ran.line.startswith("command -v") else 127, b"", b"")
    (task,) = bare.run("- script: {cmd: page, executable: python3}").tasks
    assert task.message == "non-zero return code 127"


def test_the_documentation_lists_them() -> None:
    """`pip` asks for the pip of the guest, which says what is missing itself."""
    assert NEED_PYTHON.keys() | NEED_SH.keys() | {"pip"} == RUN.keys()
    text = (PROJECT / "docs/playbooks.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"^These modules require python3 in the guest: ([^.]*)\.", text, re.MULTILINE)
    assert set(re.findall("`([a-z_]+)`", listed)) == {*NEED_PYTHON, "pip"}
