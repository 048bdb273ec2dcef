"""`lineinfile`, `replace`, `find`, `slurp` and what a task hides, with the programs of the guest run here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.gates.conftest import Gate

CONTENT = "alpha=1\n# beta\nbeta=2\nend"


def edit(gate: Gate, module: str, options: str, content: str = CONTENT) -> tuple[Any, str]:
    (gate.root / "f").write_text(content)
    result = gate.run(f"- {module}: {{path: {gate.root}/f, {options}}}")
    return result.tasks[0], (gate.root / "f").read_text()


@pytest.mark.parametrize(
    ("options", "content"),
    [
        ("line: end", "alpha=1\n# beta\nbeta=2\nend\n"),
        ("line: new", f"{CONTENT}\nnew\n"),
        ("line: new, insertafter: '^alpha'", "alpha=1\nnew\n# beta\nbeta=2\nend"),
        ("line: new, insertbefore: BOF", f"new\n{CONTENT}"),
        ("line: 'beta=9', regexp: '^beta='", "alpha=1\n# beta\nbeta=9\nend"),
        (r"line: '\1=9', regexp: '^(\w+)=2', backrefs: true", "alpha=1\n# beta\nbeta=9\nend"),
        ("state: absent, regexp: beta", "alpha=1\nend"),
    ],
)
def test_lineinfile(gate: Gate, options: str, content: str) -> None:
    task, found = edit(gate, "lineinfile", options)
    assert (task.outcome, found) == ("changed", content)


def test_lineinfile_changes_nothing_twice_and_creates_only_if_told(gate: Gate) -> None:
    assert edit(gate, "lineinfile", "line: alpha=1")[0].outcome == "ok"
    missing = gate.run(f"- lineinfile: {{path: {gate.root}/none/f, line: x}}")
    assert "does not exist" in missing.message
    assert gate.run(f"- lineinfile: {{path: {gate.root}/none/f, line: x, create: true}}").outcome == "passed"


@pytest.mark.parametrize(
    "options",
    [
        "state: \"{{ 'present' }}\"",
        'line: x, insertafter: a, insertbefore: "{{ \'b\' }}", regexp: "{{ omit }}"',
        "state: \"{{ 'absent' }}\"",
        "line: x, regexp: \"{{ '(' }}\"",
    ],
)
def test_lineinfile_says_what_is_wrong(gate: Gate, options: str) -> None:
    task, content = edit(gate, "lineinfile", options)
    assert (task.outcome, content) == ("failed", CONTENT) and task.message


def test_replace_within_a_section(gate: Gate) -> None:
    task, content = edit(gate, "replace", "regexp: '=', replace: ':', after: '# beta'")
    assert (task.outcome, content, task.message) == ("changed", "alpha=1\n# beta\nbeta:2\nend", "1 replacements made")
    assert edit(gate, "replace", "regexp: nothing")[0].outcome == "ok"


def test_find_and_slurp(gate: Gate) -> None:
    (gate.root / "tree/low").mkdir(parents=True)
    (gate.root / "tree/low/a.txt").write_text("one\n")
    (gate.root / "tree/b.txt").write_text("two\n")
    result = gate.run(f"""
- find: {{paths: {gate.root}/tree, patterns: '*.txt', recurse: true, contains: one}}
  register: found
- slurp: {{src: '{{{{ found.files[0].path }}}}'}}
  register: content
- debug: {{msg: "{{{{ found.matched }}}} {{{{ content.content | b64decode }}}}"}}
- slurp: {{src: {gate.root}/nothing}}
""")
    assert result.tasks[2].message == "1 one\n" and "File not found" in result.message


def test_what_a_task_with_no_log_says_is_nowhere(gate: Gate) -> None:
    result = gate.run("""
- {name: secret, command: echo hidden-word, no_log: true, register: kept}
- {name: failing, command: exit 4, no_log: true, ignore_errors: true}
- {name: looped, command: 'echo {{ item }}', loop: [hidden-word], no_log: true}
- {name: known, assert: {that: "kept.stdout == 'hidden-word'"}}
""")
    assert result.outcome == "passed"
    assert "hidden-word" not in f"{result.tasks} {gate.events}"
    assert result.tasks[0].message.startswith("the output is hidden")


def test_a_loop_names_its_items(gate: Gate) -> None:
    result = gate.run("""
- command: echo {{ one.name }} {{ n }}
  loop: [{name: a, more: x}, {name: b, more: y}]
  loop_control: {loop_var: one, index_var: n, label: '{{ one.name }}'}
- debug: {msg: '{{ item.key }}'}
  with_dict: {k: 1}
- debug: {msg: '{{ item }}'}
  with_items: [1, [2, [3]]]
""")
    assert result.tasks[0].stdout == "[a]\na 0\n[b]\nb 1\n"
    assert "k" in result.tasks[1].message and result.tasks[2].message == "1: 1; 2: 2; [3]: [3]"
