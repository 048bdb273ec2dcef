"""Roles, imports and files of variables are read before the first task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.report.model import GateResult
from tests.unit.gates.conftest import Gate

FILES = {
    "roles/r/tasks/main.yml": "- {name: says, debug: {msg: '{{ a }} {{ b }} {{ role_name }} {{ role_path | basename }}'}}\n- include_tasks: more.yml\n",
    "roles/r/tasks/more.yml": "- {name: more, command: echo more, notify: done}\n",
    "roles/r/tasks/other.yaml": "- {name: other, debug: {msg: '{{ item }}'}}\n",
    "roles/r/handlers/main.yml": "- {name: done, debug: {msg: '{{ b }}'}}\n",
    "roles/r/defaults/main.yml": "a: default\nb: default\n",
    "roles/r/vars/main.yml": "b: of the role\n",
    "roles/r/templates/t.j2": "{{ b }}",
    "variables.yaml": "a: from the file\n",
    "tasks.yaml": "- {name: one, debug: {msg: '{{ word }}'}}\n- {name: two, debug: {msg: x}}\n",
    "other.yaml": "- hosts: all\n  tasks: [{name: of the other, debug: {msg: '{{ a }}'}}]\n",
}


def write(folder: Path, playbook: str, **more: str) -> Path:
    for name, text in {**FILES, **more, "p.yaml": playbook}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "p.yaml"


def run(gate: Gate, playbook: str, **more: str) -> GateResult:
    path = write(gate.root, playbook, **more)
    context = GateContext(
        roots=(gate.root,), artifacts=gate.root / "artifacts", renderer=Templar(), environment={"KTRDR_X": "x"}
    )
    return run_playbook(load_playbook(path), gate.guest, context)


def messages(result: GateResult) -> list[tuple[str, str]]:
    return [(task.name, task.message) for task in result.tasks]


def test_a_role_of_the_play(gate: Gate) -> None:
    found = messages(
        run(
            gate,
            "- hosts: all\n  vars: {b: play}\n  roles: [r]\n  tasks: [{name: after, debug: {msg: '{{ a }} {{ b }}'}}]\n",
        )
    )
    assert found == [
        ("says", "default of the role r r"),
        ("more", ""),
        ("after", "default of the role"),
        ("done", "of the role"),
    ]


def test_variables_of_its_entry_win(gate: Gate) -> None:
    found = messages(run(gate, "- hosts: all\n  roles: [{role: r, vars: {a: mine, b: too}, when: true}]\n"))
    assert found[0] == ("says", "mine too r r")


def test_include_role_with_other_tasks_in_a_loop(gate: Gate) -> None:
    found = messages(run(gate, "- hosts: all\n  tasks: [{include_role: {name: r, tasks_from: other}, loop: [1, 2]}]\n"))
    assert found == [("other", "1"), ("other", "2")]


def test_import_role_with_a_condition_skips_each_of_its_tasks(gate: Gate) -> None:
    result = run(gate, "- hosts: all\n  tasks: [{import_role: {name: r}, when: false}]\n")
    assert [(task.name, task.outcome) for task in result.tasks] == [("says", "skipped"), ("include_tasks", "skipped")]


def test_imported_tasks_playbooks_and_files_of_variables(gate: Gate) -> None:
    text = (
        "- hosts: all\n  vars: {a: play}\n  vars_files: [variables.yaml]\n  tasks:\n    - {import_tasks: tasks.yaml, vars: {word: given}}\n"
        "    - {name: a, debug: {msg: '{{ a }}'}}\n- {import_playbook: other.yaml, vars: {a: imported}}\n"
    )
    assert messages(run(gate, text)) == [
        ("one", "given"),
        ("two", "x"),
        ("a", "from the file"),
        ("of the other", "imported"),
    ]


def test_a_file_is_searched_beside_the_file_that_includes_it_then_in_the_role_then_beside_the_playbook(
    gate: Gate,
) -> None:
    said = {
        name: f"- debug: {{msg: {name}}}\n"
        for name in ("x.yml", "y.yml", "roles/s/tasks/deep/x.yml", "roles/s/z.yml", "sub/x.yml")
    }
    more = {
        "roles/s/tasks/main.yml": "- import_tasks: deep/main.yml\n",
        "roles/s/tasks/deep/main.yml": "- include_tasks: x.yml\n- include_tasks: y.yml\n- import_tasks: z.yml\n",
        "sub/main.yml": "- include_tasks: x.yml\n- import_tasks: sub/x.yml\n- include_tasks: y.yml\n",
    }
    result = run(gate, "- hosts: all\n  roles: [s]\n  tasks: [{include_tasks: sub/main.yml}]\n", **said, **more)
    assert [message for _, message in messages(result)] == [
        "roles/s/tasks/deep/x.yml", "y.yml", "roles/s/z.yml", "sub/x.yml", "sub/x.yml", "y.yml",
    ]  # fmt: skip


def test_of_a_list_in_vars_files_the_first_file_that_exists_counts(gate: Gate) -> None:
    play = "- hosts: all\n  vars_files: [[missing.yaml, ./variables.yaml, second.yaml]]\n  tasks: [{debug: {msg: '{{ a }}'}}]\n"
    assert messages(run(gate, play, **{"second.yaml": "a: second\n"})) == [("debug", "from the file")]


def test_the_variables_of_an_include_win_over_results_and_those_of_an_import_do_not(gate: Gate) -> None:
    """As in Ansible, to which `include_tasks` is a call with parameters."""
    more = {
        "v.yaml": "- debug: {msg: '{{ v }} {{ r }}'}\n- include_tasks: w.yaml\n- include_tasks: w.yaml\n  vars: {v: deeper}\n",
        "w.yaml": "- debug: {msg: '{{ v }}'}\n",
    }
    tasks = """\
    - set_fact: {v: fact, r: fact}
    - {include_tasks: v.yaml, vars: {v: '{{ item }}', r: given}, loop: [one]}
    - {import_tasks: v.yaml, vars: {v: given, r: given}}
    - debug: {msg: '{{ v }}'}
"""
    found = [message for _, message in messages(run(gate, f"- hosts: all\n  tasks:\n{tasks}", **more))[1:]]
    assert found == ["one given", "one", "deeper", "fact fact", "fact", "deeper", "fact"]


def test_the_digest_covers_the_files_of_roles(tmp_path: Path) -> None:
    path = write(tmp_path, "- hosts: all\n  roles: [r]\n  tasks: [{template: {src: t.j2, dest: /x}}]\n")
    before = load_playbook(path).digest
    (tmp_path / "roles/r/templates/t.j2").write_text("{{ a }}")
    assert load_playbook(path).digest != before


PLAY = "- hosts: all\n  tasks:\n    - "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "- hosts: all\n  roles: [nothing]\n",
            "p.yaml:2:11: [0].roles[0]: 'roles/nothing/tasks/main.yaml' cannot be read",
        ),
        ("- hosts: all\n  roles: ['{{ a }}']\n", "must be a literal name"),
        ("- hosts: all\n  roles: [../r]\n", "is not beneath the playbook's folder"),
        ("- hosts: all\n  roles: [{role: r, extra: 1}]\n", "'extra' is not supported in a role"),
        (
            "- hosts: all\n  roles: [needs]\n",
            "roles/needs/meta/main.yml:1:15: dependencies: dependencies of roles are not supported",
        ),
        ("- import_playbook: sub/other.yaml\n", "must be in the folder of the playbook"),
        ("- import_playbook: p.yaml\n", "'p.yaml' imports itself"),
        ("- hosts: all\n  vars_files: [none.yaml]\n", "'none.yaml' cannot be read"),
        ("- hosts: all\n  vars_files: [tasks.yaml]\n", "tasks.yaml must be a mapping"),
        (f"{PLAY}{{import_tasks: tasks.yaml, loop: [1]}}\n", "'loop' is not supported on import_tasks"),
        (f"{PLAY}{{include_role: {{name: r, public: true}}}}\n", "include_role has no option 'public'"),
        (f"{PLAY}{{template: {{src: bad.j2, dest: /x}}}}\n", "bad.j2:2: the filter 'nofilter' is not supported"),
        (f"{PLAY}{{template: {{src: fact.j2, dest: /x}}}}\n", "the fact 'ansible_facts.bios_date' is not supported"),
        (f"{PLAY}{{command: x, loop: [1], with_items: [2]}}\n", "a task has one loop"),
        (
            f"{PLAY}{{command: x, with_nested: [2]}}\n",
            "the keyword 'with_nested' is not supported; use `loop` with a filter",
        ),
        (
            f"{PLAY}{{command: x, delegate_to: localhost}}\n",
            "the keyword 'delegate_to' is not supported; a gate runs nothing on the host",
        ),
        (f"{PLAY}{{include_vars: x.yaml}}\n", "'include_vars' is not supported; use `vars_files` of the play"),
        (f"{PLAY}{{command: x, become_user: me}}\n", "use `command: sudo -u USER …`"),
        (
            "- hosts: all\n  become_user: me\n",
            "'become_user' is not supported in a play; use `command: sudo -u USER …`",
        ),
        ("- hosts: all\n  vars_files: [[none.yaml, more.yaml]]\n", "'more.yaml' cannot be read"),
        (f"{PLAY}{{command: x, loop_control: {{extended: true}}}}\n", "'extended' is not supported in loop_control"),
    ],
)
def test_what_is_refused_before_the_first_task(tmp_path: Path, text: str, said: str) -> None:
    more: dict[str, Any] = {
        "roles/needs/tasks/main.yml": "[]",
        "roles/needs/meta/main.yml": "dependencies: [r]",
        "templates/bad.j2": "one\n{{ a | nofilter }}\n",
        "templates/fact.j2": "{{ ansible_facts.bios_date }}",
    }
    with pytest.raises(DocumentError) as caught:
        load_playbook(write(tmp_path, text, **more), source="p.yaml")
    assert said in str(caught.value)


def test_without_a_folder_nothing_is_read() -> None:
    with pytest.raises(DocumentError, match="not supported without a folder"):
        parse_playbook("- hosts: all\n  roles: [r]\n", "p.yaml")


# -- tests of files, and the environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("playbook_dir is directory", "true"),
        ("(playbook_dir ~ '/p.yaml') is file", "true"),
        ("(playbook_dir ~ '/p.yaml') is directory", "false"),
        ("(playbook_dir ~ '/nothing') is exists", "false"),
        ("(playbook_dir ~ '/link') is link", "true"),
        ("(playbook_dir ~ '/link') is file", "false"),
        ("(playbook_dir ~ '/link') is link_exists", "true"),
        ("lookup('env', 'KTRDR_X')", "x"),
        ("lookup('env', 'KTRDR_Y', default='d')", "d"),
        ("query('env', 'KTRDR_X', 'KTRDR_Y')", '["x", ""]'),
    ],
)
def test_what_a_template_may_ask_of_the_host(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, expression: str, value: str
) -> None:
    for name in ("KTRDR_X", "KTRDR_Y"):
        monkeypatch.setenv(name, "a variable of the host")
    (gate.root / "link").symlink_to("p.yaml")
    result = run(gate, f'- hosts: all\n  tasks: [{{debug: {{msg: "{{{{ {expression} }}}}"}}}}]\n')
    assert (result.outcome, result.tasks[0].message) == ("passed", value)


@pytest.mark.parametrize("path", ["/etc/passwd", "relative", "../x"])
def test_no_other_path_is_tested(gate: Gate, path: str) -> None:
    result = run(gate, f"- hosts: all\n  tasks: [{{debug: {{msg: \"{{{{ '{path}' is file }}}}\"}}}}]\n")
    assert result.outcome == "failed" and "is not beneath the playbook's folder or the workspace" in result.message
