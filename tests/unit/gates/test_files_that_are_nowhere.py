"""A file that a task sends and that exists nowhere is found when the playbook is loaded, not minutes later."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.load import load_playbook

CERTAIN = [
    "- {name: t, copy: {src: gone, dest: /x}}",
    "- {name: t, template: {src: gone, dest: /x}}",
    "- {name: t, script: gone --now}",
    "- {name: t, block: [{name: i, copy: {src: gone, dest: /x}}]}",
    "- {name: t, block: [{name: i, debug: {msg: x}}], always: [{name: a, script: gone}]}",
    "- {name: t, include_tasks: more.yaml}",
]
UNCERTAIN = [
    "- {name: t, copy: {src: gone, dest: /x}, when: x is defined}",
    "- {name: t, copy: {src: gone, dest: /x}, ignore_errors: true}",
    "- {name: t, copy: {src: gone, dest: /x}, failed_when: false}",
    "- {name: t, copy: {src: gone, dest: /x}, loop: []}",
    "- {name: t, copy: {src: gone, dest: /x}, tags: [never]}",
    "- {name: t, copy: {src: 'gone{{ x }}', dest: /x}}",
    "- {name: t, copy: {src: /gone, dest: /x, remote_src: true}}",
    "- {name: t, script: {cmd: gone, creates: /x}}",
    "- {name: t, block: [{name: i, script: gone}], rescue: [{name: r, script: gone}]}",
    "- {name: t, block: [{name: i, script: gone}], when: x is defined}",
    "- {name: t, include_tasks: more.yaml, when: x is defined}",
]


def write(folder: Path, task: str) -> Path:
    path = folder / "playbooks/p.yaml"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "more.yaml").write_text("- {name: m, script: gone}\n")
    path.write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n    {task}\n")
    return path


@pytest.mark.parametrize("task", CERTAIN)
def test_it_is_an_error_with_its_place(tmp_path: Path, task: str) -> None:
    path = write(tmp_path, task)
    with pytest.raises(DocumentError) as caught:
        load_playbook(path, beneath=tmp_path)
    [problem] = caught.value.problems
    assert "there is no file 'gone'" in problem.message
    assert (problem.source, problem.line) in [(str(path), 4), (str(path.parent / "more.yaml"), 1), ("more.yaml", 1)]


@pytest.mark.parametrize("task", UNCERTAIN)
def test_a_task_that_may_not_run_or_may_fail_is_no_error(tmp_path: Path, task: str) -> None:
    load_playbook(write(tmp_path, task), beneath=tmp_path)


@pytest.mark.parametrize(
    "name", ["gone", "files/gone", "playbooks/gone", "playbooks/files/gone", "playbooks/templates/gone", "gone/inner"]
)
def test_each_place_counts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, CERTAIN[0])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    load_playbook(path, beneath=tmp_path)


def test_all_are_named_at_once_and_a_role_is_searched(tmp_path: Path) -> None:
    path = write(tmp_path, "- {name: t, script: a}\n    - {name: u, copy: {src: b, dest: /x}}")
    with pytest.raises(DocumentError) as caught:
        load_playbook(path, beneath=tmp_path)
    assert [problem.line for problem in caught.value.problems] == [4, 5]
    role = path.parent / "roles/r"
    for folder in ("tasks", "files"):
        (role / folder).mkdir(parents=True)
    (role / "tasks/main.yaml").write_text("- {name: t, script: a}\n")
    path.write_text("- hosts: all\n  gather_facts: false\n  roles: [r]\n")
    with pytest.raises(DocumentError, match="there is no file 'a'"):
        load_playbook(path, beneath=tmp_path)
    (role / "files/a").write_text("")
    load_playbook(path, beneath=tmp_path)
