"""Which files of a gate the first lines of a report name: all that it includes and sends, wherever its folder is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.report.model import Commits
from ktrdr_vm.run.warnings import find_first_lines

PARENT = "version: 1\nname: parent\nimage: debian-13-docker\n"
FILES = {
    "ci/gate.yaml": """\
- hosts: all
  vars_files: [settings.yaml]
  roles: [checks]
  tasks:
    - import_tasks: inner/first.yaml
    - copy: {src: expected, dest: /tmp/expected}
    - copy: {src: later.txt, dest: /tmp/later}
      when: "(playbook_dir ~ '/later.txt') is file"
""",
    "ci/settings.yaml": "a: 1\n",
    "ci/roles/checks/tasks/main.yml": "- include_tasks: more.yml\n",
    "ci/roles/checks/tasks/more.yml": "- command: echo more\n",
    "ci/inner/first.yaml": "- include_tasks: second.yaml\n",
    "ci/inner/second.yaml": "- command: echo second\n",
    "ci/files/expected/one.txt": "1\n",
}


def find(folder: Path, *changed: str) -> tuple[str, ...]:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    playbook = load_playbook(folder / "ci/gate.yaml", beneath=folder)
    gathered: Any = SimpleNamespace(
        repository=SimpleNamespace(root=folder),
        loaded=load_profile(
            "extends: ci/parent.yaml\nname: p\n",
            str(folder / "p.yaml"),
            lambda *_: (str(folder / "ci/parent.yaml"), PARENT.encode()),
        ),
        playbooks=(("ci/gate.yaml", playbook),),
        plan=SimpleNamespace(observe=False),
        base=None,
    )
    return find_first_lines([Commits("refs/heads/x", "c" * 40, changed)], gathered)


def test_each_file_that_the_gate_read_is_named(tmp_path: Path) -> None:
    for name in FILES:
        assert find(tmp_path, "src/app.py", name) == (f"refs/heads/x changes the profile or playbooks: {name}",)


def test_so_are_the_profile_and_those_that_it_extends(tmp_path: Path) -> None:
    for name in ("p.yaml", "ci/parent.yaml"):
        assert find(tmp_path, name) == (f"refs/heads/x changes the profile or playbooks: {name}",)


def test_no_number_of_other_files_hides_one(tmp_path: Path) -> None:
    """Names are in their order, and a branch chooses those of its own files."""
    others = tuple(f"images/{number:03}" for number in range(200))
    tests = tuple(f"tests/{number:03}.py" for number in range(12))
    first, second = find(tmp_path, *others, "p.yaml", *tests, "ci/gate.yaml")
    assert first.startswith("refs/heads/x changes the profile or playbooks: p.yaml, ci/gate.yaml, images/000, ")
    assert first.endswith(", images/007 and 192 more")
    assert second.startswith("refs/heads/x changes tests: tests/000.py, ") and second.endswith("009.py and 2 more")


def test_so_is_one_that_is_new_where_the_gate_searches(tmp_path: Path) -> None:
    for name in ("ci/files/expected/two.txt", "ci/files/later.txt", "ci/later.txt"):
        assert find(tmp_path, name) == (f"refs/heads/x changes the profile or playbooks: {name}",)


def test_what_lies_beside_them_is_not(tmp_path: Path) -> None:
    assert find(tmp_path, "ci/README.md", "ci/inner/third.yaml", "ci/files/other.txt", "src/settings.yaml") == ()
