"""Handlers run once, in their order, after the tasks that notified them."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.playbook import parse_playbook
from tests.unit.gates.conftest import Gate

HANDLERS = """  handlers:
    - {name: one, command: echo one}
    - {name: two, command: echo two, listen: both}
    - {name: three, command: echo three, listen: [both, last], when: false}
"""


def names(gate: Gate, tasks: str, play: str = HANDLERS) -> list[tuple[str, str]]:
    return [(task.name, task.outcome) for task in gate.run(tasks, play=play).tasks]


def test_a_change_notifies_and_each_handler_runs_once_in_its_order(gate: Gate) -> None:
    assert names(gate, "- {name: a, command: echo a, notify: [both, one]}\n- {name: b, command: echo b, notify: one}") == [
        ("a", "changed"), ("b", "changed"), ("one", "changed"), ("two", "changed"), ("three", "skipped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "task",
    ["{command: echo a, changed_when: false, notify: one}", "{command: exit 1, ignore_errors: true, notify: one}"],
)
def test_what_changed_nothing_or_failed_notifies_nobody(gate: Gate, task: str) -> None:
    assert len(names(gate, f"- {task}")) == 1


def test_flush_handlers_runs_them_at_once(gate: Gate) -> None:
    found = names(
        gate, "- {name: a, command: echo a, notify: one}\n- meta: flush_handlers\n- {name: b, command: echo b}"
    )
    assert [name for name, _ in found] == ["a", "one", "b"]


def test_after_a_failure_no_handler_runs(gate: Gate) -> None:
    found = names(gate, "- {name: a, command: echo a, notify: one}\n- {name: b, command: exit 1}")
    assert found == [("a", "changed"), ("b", "failed")]


def test_a_name_may_be_a_template_and_one_that_nobody_has_fails_its_task(gate: Gate) -> None:
    assert names(gate, '- {name: a, command: echo a, notify: "{{ item }}", loop: [one]}')[-1] == ("one", "changed")
    result = gate.run("- {name: a, command: echo a, notify: \"{{ 'no' }}body\"}", play=HANDLERS)
    assert result.outcome == "failed" and "there is no handler 'nobody'" in result.message


@pytest.mark.parametrize(
    ("play", "said"),
    [
        ("tasks: [{command: x, notify: nobody}]", "there is no handler 'nobody' in this play"),
        ("tasks: []\n  handlers: [{block: []}]", "the keyword 'block' is not supported here"),
        ("tasks: []\n  handlers: [{name: '{{ a }}', command: x}]", "must be literal"),
        ("tasks: [{command: x, listen: a}]", "the keyword 'listen' is not supported here"),
        ("tasks: [{meta: end_play}]", "free_form must be one of flush_handlers, noop"),
        ("tasks: []\n  force_handlers: true", "'force_handlers' is not supported in a play"),
    ],
)
def test_what_is_refused(play: str, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_playbook(f"- hosts: all\n  {play}\n", "p.yaml")
    assert said in str(caught.value)


IMPORTED = {
    "h.yaml": "- {name: of the file, command: echo of the file, listen: both}\n- import_tasks: more.yaml\n",
    "more.yaml": "- {name: further, command: 'echo {{ word }}'}\n",
}


def test_handlers_of_a_file_that_is_imported(gate: Gate) -> None:
    play = "  handlers:\n    - {import_tasks: h.yaml, vars: {word: given}, when: not skip}\n    - {name: one, command: echo one}\n"
    for skip, outcome in (("false", "changed"), ("true", "skipped")):
        result = gate.run(
            "- {name: a, command: echo a, notify: [further, both, one]}",
            play=f"  vars: {{skip: {skip}}}\n{play}",
            read=IMPORTED.__getitem__,
        )
        ended = [(task.name, task.outcome) for task in result.tasks]
        assert ended == [("a", "changed"), ("of the file", outcome), ("further", outcome), ("one", "changed")]
    assert [ran.line for ran in gate.guest.ran if ran.line.startswith("echo g")] == ["echo given"]


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("{name: one, include_tasks: h.yaml}", "a handler is a task or `import_tasks`"),
        ("{name: one, block: [{command: x}]}", "the keyword 'block'"),
        ("{import_tasks: h.yaml, listen: one}", "'listen' is not supported on an import of handlers"),
        ("{import_tasks: '../h.yaml'}", "is not beneath the playbook's folder"),
    ],
)
def test_a_handler_that_is_refused_is_said_once(handler: str, said: str) -> None:
    text = f"- hosts: all\n  tasks: [{{command: x, notify: one}}]\n  handlers:\n    - {handler}\n"
    with pytest.raises(DocumentError) as caught:
        parse_playbook(text, "p.yaml", read={"h.yaml": "- {name: one, command: x}\n", "more.yaml": ""}.__getitem__)
    [problem] = caught.value.problems
    assert said in problem.message
