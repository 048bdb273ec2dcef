"""Values that keywords, options and templates have under ansible-core 2.19, which tests/agreement compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.templating import Scope, Templar, TemplateError
from ktrdr_vm.guest.protocol import GuestResult


def render(text: Any, **variables: Any) -> Any:
    return Templar().render(text, Scope(((variables, True),)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ [1, 2] }}\n", [1, 2]),
        ("{{ true }}\n", True),
        ("{{ {'a': 1} }}\n", {"a": 1}),
        ("{% set a = [1] %}\n{{ a }}\n", [1]),
        ("{{ [1] }}\n\n", "[1]\n\n"),
        ("{{ 'a\\\\b' }}\n\n", "a\\\\b\n\n"),
        ("{{ [1] | map('regex_replace', '(1)', '\\1') | list }}\n", ["1"]),
        ("{{ lines }}\n", "a\nb\n"),
        ("x\n{{ 1 }}\n\n\n", "x\n1\n\n\n"),
        (["a", "{{ none_such | default(omit) }}"], ["a"]),
        ({"a": "{{ none_such | default(omit) }}", "b": 1}, {"b": 1}),
        ("{{ [none_such | default(omit), 1] | length }}", 2),
        ("{{ listed | length }}", 1),
        ("{{ [none_such | default(omit), {'a': omit}] }}", [{}]),
        ("a{{ none_such | default(omit) }}b", "ab"),
    ],
)
def test_a_line_break_at_the_end_and_omit(text: Any, value: Any) -> None:
    assert render(text, lines="a\nb\n", listed="{{ [omit, 1] }}") == value


@pytest.mark.parametrize(
    "text", ["{{ found.items }}", "{{ [found.keys] }}", "x{{ found.values }}", "{{ namespace(a=1) }}", "{{ dict }}"]
)
def test_a_function_is_no_value(text: str) -> None:
    with pytest.raises(TemplateError, match=r"is a function and not a value|Namespace cannot be the result"):
        render(text, found={"items": [1]})


@pytest.mark.parametrize("blocks", [{}, {"trim_blocks": False}])
def test_a_template_file_ends_as_its_output(blocks: dict[str, bool]) -> None:
    text = "{% for one in [1] %}\n{{ one }}\n{% endfor %}\n"
    rendered = Templar().render_file(text, Scope(()), **blocks)
    assert rendered == ("1\n" if not blocks else "\n1\n")


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ("retries: '{{ none_such }}'", "`retries`: 'none_such' is undefined"),
        ("retries: '{{ [] }}'", "`retries` must be a number"),
        ("retries: 2\n  delay: \"{{ 'soon' }}\"", "`delay` must be a number, not 'soon'"),
        ("retries: \"{{ 'inf' }}\"", "`retries` must be a number, not 'inf'"),
    ],
)
def test_retries_that_are_no_number_fail_the_task(gate: Any, keywords: str, said: str) -> None:
    task = gate.run(f"- shell: make\n  until: false\n  {keywords}").tasks[0]
    assert task.outcome == "failed"
    assert said in task.message
    assert not gate.guest.ran


def test_the_environment_of_a_task_has_the_text_of_python(gate: Any) -> None:
    gate.run("- {shell: make, environment: {A: true, B: null, C: 1.0, D: [x], E: text}}")
    assert gate.guest.ran[0].environment.items() >= {"A": "True", "B": "None", "C": "1.0", "D": "['x']"}.items()


def test_a_result_of_a_command_has_an_empty_message(gate: Any) -> None:
    result = gate.run("- {shell: make, register: r}\n- assert: {that: \"r.msg == ''\"}")
    assert [task.outcome for task in result.tasks] == ["changed", "ok"]


def test_with_dict_takes_a_list_of_mappings(gate: Any) -> None:
    task = gate.run("- {debug: {msg: '{{ item.key }}'}, with_dict: [{a: 1}, {b: 2}]}").tasks[0]
    assert (task.outcome, task.message) == ("ok", '{"key": "a", "value": 1}: a; {"key": "b", "value": 2}: b')


def test_debug_of_a_key_that_is_not_there_is_no_failure(gate: Any) -> None:
    result = gate.run("- {shell: make, register: r}\n- debug: {var: r.none_such}\n- debug: {var: 'r.stdout_lines[3]'}")
    assert [task.outcome for task in result.tasks[1:]] == ["ok", "ok"]
    assert all("VARIABLE IS NOT DEFINED" in task.message for task in result.tasks[1:])


def test_a_script_that_is_not_wanted_is_skipped(gate: Any) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b"", b"")
    task = gate.run("- script: {cmd: x.sh, creates: /made}").tasks[0]
    assert (task.outcome, task.message) == ("skipped", "/made exists")


def test_messages_of_assert_may_be_lists(gate: Any) -> None:
    task = gate.run("- assert: {that: 1 == 2, fail_msg: [a, b], success_msg: [c]}").tasks[0]
    assert (task.outcome, task.message) == ("failed", '["a", "b"]: 1 == 2')


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("{shell: make, with_items: null}", "`with_items` has no value"),
        ("{shell: make, with_dict: }", "`with_dict` has no value"),
        ("{copy: {src: a, dest: /b, mode: preserve}}", "supported with remote_src only"),
        ("{copy: {content: a, dest: /b, mode: preserve}}", "supported with remote_src only"),
        ("{template: {src: a, dest: /b, mode: preserve}}", "mode: preserve is not supported"),
        ("{file: {path: /b, mode: preserve}}", "mode: preserve is not supported"),
        ("{debug: {msg: a, var: b}}", "only one of msg, var"),
        ("{stat: {path: /b, get_mime: true}}", "get_mime is not supported"),
    ],
)
def test_what_ansible_refuses_or_cannot_be_kept_is_refused_in_front(gate: Any, task: str, said: str) -> None:
    with pytest.raises(DocumentError) as refused:
        gate.run(f"- {task}")
    assert any(said in problem.message for problem in refused.value.problems)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a file and a folder, and a link to each."""
    place = tmp_path / "place"
    (place / "folder").mkdir(parents=True)
    (place / "file").write_text("x\n")
    (place / "file").chmod(0o644)
    (place / "link").symlink_to("file")
    (place / "way").symlink_to("folder")
    (place / "broken").symlink_to("none-such")
    return place


@pytest.mark.parametrize(
    ("options", "outcome", "modes"),
    [
        ("path: PLACE/link, mode: '0600'", "changed", (0o600, 0o755)),
        ("path: PLACE/link, mode: '0600', follow: false", "ok", (0o644, 0o755)),
        ("path: PLACE/link, mode: '0600', state: file", "changed", (0o600, 0o755)),
        ("path: PLACE/way, mode: '0700', state: directory", "changed", (0o644, 0o700)),
        ("path: PLACE/way, mode: '0700', state: directory, follow: false", "failed", (0o644, 0o755)),
        ("path: PLACE/way, state: absent", "changed", (0o644, 0o755)),
        ("path: PLACE/link, state: file, follow: false", "failed", (0o644, 0o755)),
    ],
)
def test_file_follows_a_link_unless_told(
    gate: Any, linked: Path, options: str, outcome: str, modes: tuple[int, int]
) -> None:
    assert gate.run(f"- file: {{{options.replace('PLACE', str(linked))}}}").tasks[0].outcome == outcome
    assert tuple((linked / name).stat().st_mode & 0o777 for name in ("file", "folder")) == modes


@pytest.mark.parametrize("name", ["link", "broken"])
def test_copy_replaces_a_link_unless_told_to_follow(gate: Any, linked: Path, name: str) -> None:
    followed = gate.run(f"- copy: {{content: 'a', dest: {linked}/{name}, follow: true}}").tasks[0]
    assert followed.outcome == "changed" and (linked / name).read_text() == "a"
    assert (linked / name).is_symlink() is (name == "link")
    # The same content: the link is a difference.
    task = gate.run(f"- copy: {{content: 'a', dest: {linked}/{name}, mode: '0600'}}").tasks[0]
    assert task.outcome == "changed" and not (linked / name).is_symlink() and (linked / name).read_text() == "a"
    assert gate.run(f"- copy: {{content: 'a', dest: {linked}/{name}, mode: '0600'}}").tasks[0].outcome == "ok"


def test_a_mode_of_a_result_and_a_copied_permission(gate: Any, tmp_path: Any) -> None:
    (tmp_path / "made").write_text("")
    (tmp_path / "made").chmod(0o640)
    result = gate.run(f"""
- file: {{path: '{tmp_path}/made', mode: 'o=g,g+s'}}
  register: made
- assert: {{that: "made.mode == '02644'"}}
- file: {{path: '{tmp_path}/made', mode: '0644'}}
  register: made
- assert: {{that: "made.mode == '0644'"}}
""")
    assert [task.outcome for task in result.tasks] == ["changed", "ok", "changed", "ok"]
