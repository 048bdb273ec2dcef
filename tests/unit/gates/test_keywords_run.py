"""What the keywords of a task do when it runs, with the numbers of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.model import Node, Task
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.host.paths import PROJECT
from tests.fakes.guest import FakeGuest
from tests.unit.gates.conftest import Gate, echo


def lines(gate: Gate) -> list[str]:
    """The commands of the tasks, without those that ask why one failed."""
    return [ran.line for ran in gate.guest.ran if not ran.line.startswith("command -v")]


def test_a_loop_has_at_most_a_thousand_items(gate: Gate) -> None:
    for number, outcome in ((1000, "passed"), (1001, "failed")):
        result = gate.run(f'- {{debug: {{msg: x}}, loop: "{{{{ range({number}) | list }}}}"}}')
        assert result.outcome == outcome
    assert "1001 items, more than 1000" in result.message


@pytest.mark.parametrize(
    ("loop", "ran"),
    [
        ("loop: [a, b]", ["echo a", "echo b"]),
        ("with_list: [a, b]", ["echo a", "echo b"]),
        ("with_items: [a, [b, c], '{{ listed }}']", ["echo a", "echo b", "echo c", "echo x", "echo y"]),
        ("with_items: one", ["echo one"]),
        ("loop: []", []),
    ],
)
def test_the_items_of_a_loop(gate: Gate, loop: str, ran: list[str]) -> None:
    gate.run(f'- {{command: "echo {{{{ item }}}}", {loop}}}', play="  vars: {listed: [x, y]}\n")
    assert lines(gate) == ran


def test_the_pairs_of_a_mapping(gate: Gate) -> None:
    gate.run('- {shell: "echo {{ item.key }}={{ item.value }}", with_dict: {a: 1, ü: [2]}}')
    assert lines(gate) == ["echo a=1", "echo ü=[2]"]


def test_loop_control_names_the_item_and_waits(gate: Gate) -> None:
    control = "{loop_var: one, index_var: number, label: 'no. {{ number }}', pause: 7}"
    result = gate.run(f'- {{command: "echo {{{{ one }}}} {{{{ number }}}}", loop: [a, b, c], loop_control: {control}}}')
    assert lines(gate) == ["echo a 0", "echo b 1", "echo c 2"]
    assert "[no. 2]" in result.tasks[0].stdout and gate.clock.time == 14


@pytest.mark.parametrize(
    ("keywords", "attempts", "seconds"),
    [
        ("until: 1 == 2", 4, 15),
        ("until: 1 == 2, retries: 1, delay: 2", 2, 2),
        ("retries: 2", 3, 10),
        ("until: 1 == 1", 1, 0),
        ("until: 1 == 2, retries: 0", 1, 0),
    ],
)
def test_how_often_and_how_long_a_task_is_repeated(gate: Gate, keywords: str, attempts: int, seconds: int) -> None:
    gate.run(f"- {{command: exit 1, {keywords}}}")
    assert (len(lines(gate)), gate.clock.time) == (attempts, seconds)


def test_the_time_of_an_attempt(gate: Gate) -> None:
    gate.run("- command: echo\n- {command: echo, timeout: 5}\n- block: [{command: echo}]\n  timeout: 6")
    assert [ran.timeout for ran in gate.guest.ran] == [1800, 5, 6]


def test_run_once_and_tags_change_nothing(gate: Gate) -> None:
    gate.run("- {command: echo a, run_once: true, tags: [slow]}\n- {command: echo b, run_once: false, tags: untagged}")
    assert lines(gate) == ["echo a", "echo b"]


def test_further_options_of_a_module_are_its_args(gate: Gate) -> None:
    gate.run("- {command: echo a, args: {chdir: /srv}}")
    assert gate.guest.ran[0].chdir == "/srv"


def test_plays_run_until_one_fails() -> None:
    text = "".join(
        f"- {{hosts: all, gather_facts: false, tasks: [{{command: {line}}}]}}\n"
        for line in ("echo a", "exit 1", "echo b")
    )
    guest = FakeGuest(echo)
    result = run_playbook(parse_playbook(text, "p.yaml"), guest, GateContext(renderer=Templar()))
    ran = [one.line for one in guest.ran if not one.line.startswith("command -v")]
    assert result.outcome == "failed" and ran == ["echo a", "exit 1"]


def test_sections_of_a_play_run_in_their_order(gate: Gate) -> None:
    play = "  post_tasks: [{command: echo post}]\n  pre_tasks: [{command: echo pre}]\n"
    gate.run("- command: echo tasks", play=play)
    assert lines(gate) == ["echo pre", "echo tasks", "echo post"]


def test_output_that_is_not_utf8_is_registered_with_replacement_characters(gate: Gate) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b"a\xffb\n", b"") if ran.line == "raw" else echo(ran)
    result = gate.run("- {shell: raw, register: r}\n- {shell: 'echo {{ r.stdout }}'}")
    assert result.outcome == "passed" and lines(gate)[1] == "echo a\ufffdb"


def test_variables_of_the_runner(gate: Gate) -> None:
    names = "inventory_hostname ansible_check_mode ansible_managed role_name role_path playbook_dir".split()
    shown = " ".join(f"<{{{{ {name} | default('-') }}}}>" for name in names)
    files = {"roles/r/tasks/main.yml": f'- shell: "echo {shown}"\n'}

    def read(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    text = f'- hosts: all\n  gather_facts: false\n  roles: [r]\n  tasks:\n    - shell: "echo {shown}"\n'
    playbook = replace(parse_playbook(text, "p.yaml", read=read), folder="/srv/book")
    run_playbook(playbook, gate.guest, GateContext(renderer=Templar()))
    assert lines(gate) == [
        "echo <guest> <False> <Ansible managed> <r> </srv/book/roles/r> </srv/book>",
        "echo <guest> <False> <Ansible managed> <-> <-> </srv/book>",
    ]


def test_times_and_dates_of_a_playbook_are_text(gate: Gate) -> None:
    play = "  vars: {port: 22:22, day: 2026-01-02, number: 1_000, mode: 0755}\n"
    gate.run('- {shell: "echo {{ port }} {{ day }} {{ number }} {{ mode }} {{ day | type_debug }}"}', play=play)
    assert lines(gate) == ["echo 22:22 2026-01-02 1000 493 str"]


def test_functions_of_templates(gate: Gate) -> None:
    for text in ("range(2) | list == [0, 1]", "dict(a=1) == {'a': 1}", "now().year > 2000", "undef() is undefined"):
        assert gate.run(f'- {{assert: {{that: "{text}"}}}}').outcome == "passed"
    counted = "{% set n = namespace(sum=0) %}{% for i in [1, 2] %}{% set n.sum = n.sum + i %}{% endfor %}{{ n.sum }}"
    gate.run(f'- shell: "echo {counted}"')
    assert lines(gate) == ["echo 3"]


@pytest.mark.parametrize(
    ("given", "state", "outcome"),
    [(True, "present", "ok"), (False, "absent", "ok"), (True, "absent", "failed"), (False, "started", "failed")],
)
def test_wait_for_a_file(gate: Gate, given: bool, state: str, outcome: str) -> None:
    path = gate.root / "waited for"
    if given:
        path.write_text("ready: 5\n")
    [task] = gate.run(f"- {{wait_for: {{path: '{path}', state: {state}, timeout: 0}}}}").tasks
    assert task.outcome == outcome


def test_wait_for_a_text_in_a_file(gate: Gate) -> None:
    (gate.root / "log").write_text("ready: 5\n")
    tasks = f"- {{wait_for: {{path: '{gate.root / 'log'}', search_regex: 'ready: (.)', timeout: 0}}, register: r}}"
    assert gate.run(f"{tasks}\n- assert: {{that: \"r.match_groups == ['5']\"}}").outcome == "passed"


def find_tasks(nodes: Sequence[Node], outer: tuple[Any, ...] = ()) -> Iterator[tuple[Task, tuple[Any, ...]]]:
    """Each task with the conditions around it."""
    for node in nodes:
        when = (*outer, *node.common.when)
        if isinstance(node, Task):
            yield node, when
        else:
            yield from find_tasks((*node.block, *node.rescue, *node.always), when)


@pytest.mark.parametrize("name", ["startability", "static", "unit", "smoke", "e2e", "isolation"])
def test_commands_of_a_shipped_playbook_run_in_a_shell_in_the_project_and_an_empty_one_is_skipped(name: str) -> None:
    ran = 0
    for play in load_playbook(PROJECT / "playbooks" / f"{name}.yaml").plays:
        for task, when in find_tasks(play.tasks):
            command = re.search(r"{{ (\w+_command)", str(task.arguments))
            if command is None:
                continue
            ran += 1
            assert task.module == "shell", task.where
            assert task.arguments.get("chdir") == "{{ project_src }}" or name == "isolation", task.where
            if command.group(1) in ("build_command", "allowed_command"):
                assert f"{command.group(1)} | length > 0" in when
    assert ran


def test_an_empty_command_is_skipped(gate: Gate) -> None:
    playbook = load_playbook(PROJECT / "playbooks" / "static.yaml")
    for build in ("build it && true", ""):
        guest = FakeGuest()
        variables = {"project_src": "/srv/code", "static_command": "tests | tee log", "build_command": build}
        run_playbook(playbook, guest, GateContext(extra_vars=variables, renderer=Templar()))
        ran = {ran.line: ran.chdir for ran in guest.ran}
        assert ran.get("build it && true") == ("/srv/code" if build else None)
        assert ran["tests | tee log"] == "/srv/code"
