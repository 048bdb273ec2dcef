"""What was loaded is what runs: a playbook, its includes, and each file that a task names are those of the digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.gates import load
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.report.model import GateResult
from tests.unit.gates.conftest import Gate

PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - {name: task, MODULE}
    - {name: included, include_tasks: more.yaml}
"""
MODULES = {
    "copy": "copy: {src: sent, dest: /x}",
    "template": "template: {src: sent, dest: /x}",
    "script": "script: sent now",
    "folder": "copy: {src: folder, dest: /x/}",
}


def write(folder: Path, module: str) -> Path:
    (folder / "p.yaml").write_text(PLAYBOOK.replace("MODULE", MODULES[module]))
    (folder / "more.yaml").write_text("- {name: more, debug: {msg: as loaded}}\n")
    (folder / "sent").write_text("true\n")
    (folder / "folder").mkdir()
    (folder / "folder/sent").write_text("1\n")
    return folder / "p.yaml"


def run(gate: Gate, path: Path, before: Callable[[], object]) -> GateResult:
    playbook = load_playbook(path)
    before()
    return run_playbook(playbook, gate.guest, GateContext(roots=(gate.root,), renderer=Templar()))


@pytest.mark.parametrize("module", MODULES)
def test_a_sent_file_that_changed_is_refused(gate: Gate, module: str) -> None:
    path = write(gate.root, module)
    name = "folder/sent" if module == "folder" else "sent"
    [task, *_] = run(gate, path, lambda: (gate.root / name).write_text("false\n")).tasks
    assert (task.outcome, "changed after the playbook was loaded" in task.message) == ("failed", True)


@pytest.mark.parametrize(
    ("module", "name"),
    [("copy", "files/sent"), ("template", "templates/sent"), ("script", "files/sent"), ("folder", "folder/another")],
)
def test_a_file_that_appears_where_a_task_searches_first_is_refused(gate: Gate, module: str, name: str) -> None:
    path = write(gate.root, module)

    def appear() -> None:
        (gate.root / name).parent.mkdir(exist_ok=True)
        (gate.root / name).write_text("false\n")

    [task, *_] = run(gate, path, appear).tasks
    assert (task.outcome, "changed after the playbook was loaded" in task.message) == ("failed", True)


def test_an_include_that_changed_runs_as_it_was_loaded(gate: Gate) -> None:
    path = write(gate.root, "copy")
    (gate.root / "p.yaml").write_text("- hosts: all\n  tasks: [{name: i, include_tasks: more.yaml}]\n")
    result = run(gate, path, lambda: (gate.root / "more.yaml").write_text("- {name: more, debug: {msg: other}}\n"))
    assert [task.message for task in result.tasks] == ["as loaded"]


def test_a_name_that_is_known_only_when_the_task_runs_is_read_then(gate: Gate) -> None:
    path = write(gate.root, "copy")
    path.write_text("- hosts: all\n  tasks: [{name: c, copy: {src: '{{ item }}', dest: /x}, loop: [sent]}]\n")
    [task] = run(gate, path, lambda: (gate.root / "sent").write_text("later\n")).tasks
    assert "changed after" not in task.message


@pytest.mark.parametrize("module", MODULES)
def test_every_file_that_a_task_names_is_in_the_digest(tmp_path: Path, module: str) -> None:
    path = write(tmp_path, module)
    found = {load_playbook(path).digest}
    name = "folder/sent" if module == "folder" else "sent"
    (tmp_path / name).write_text("other\n")
    found.add(load_playbook(path).digest)
    if module == "folder":
        (tmp_path / "folder/sent").rename(tmp_path / "folder/renamed")
        found.add(load_playbook(path).digest)
    assert len(found) == (3 if module == "folder" else 2)


def test_the_places_where_files_are_searched_are_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task has three, and three more in every role: a few files could name millions."""
    monkeypatch.setattr(load, "MAX_SEARCHED", 200)
    for number in range(10):
        (gate.root / f"roles/r{number}/tasks").mkdir(parents=True)
        (gate.root / f"roles/r{number}/tasks/main.yaml").write_text("- {name: x, debug: {msg: x}}\n")
    copies = "".join(f"    - {{name: c{number}, copy: {{src: f{number}, dest: /x}}}}\n" for number in range(6))
    text = (
        f"- hosts: all\n  gather_facts: false\n  roles: [{', '.join(f'r{number}' for number in range(10))}]\n  tasks:\n"
    )
    path = gate.root / "p.yaml"
    path.write_text(text + copies)
    load_playbook(path)
    path.write_text(text + copies + copies.replace("src: f", "src: g"))
    with pytest.raises(UsageError, match="searched in more than 200 places"):
        load_playbook(path)
