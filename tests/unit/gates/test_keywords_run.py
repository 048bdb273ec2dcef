"""What the keywords of a task do when it runs, with the numbers of the documentation."""

from __future__ import annotations

import pytest

from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
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
