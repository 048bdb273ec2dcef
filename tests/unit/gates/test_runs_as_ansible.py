"""What a playbook does here is what it does under ansible-core, or it is refused: found by running both."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.report.model import GateResult
from tests.unit.gates.conftest import Gate


def outcomes(result: GateResult) -> list[tuple[str, str]]:
    return [(task.name, task.outcome) for task in result.tasks]


def refuse(text: str, read: dict[str, str] | None = None) -> list[str]:
    """What is said of a playbook that is refused, each with its line."""

    def find(name: str) -> str:
        if name not in (read or {}):
            raise FileNotFoundError(name)
        return (read or {})[name]

    with pytest.raises(DocumentError) as caught:
        parse_playbook(text, "p.yaml", read=find)
    return [f"{one.source}:{one.line}: {one.message}" for one in caught.value.problems]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["", ", loop: [1, 2]"])
def test_failed_when_decides_also_where_until_was_never_true(gate: Gate, loop: str) -> None:
    wait = f"- {{name: w, command: echo x, until: 1 == 2, retries: 2, delay: 0, failed_when: false, register: r{loop}}}"
    result = gate.run(f"{wait}\n- {{name: it was not, assert: {{that: r is failed}}}}")
    assert outcomes(result) == [("w", "changed"), ("it was not", "ok")]
    assert "not reached after 2 retries" in result.tasks[0].message
    for condition in ("failed_when: true", "failed_when: missing"):
        assert gate.run(wait.replace("failed_when: false", condition)).outcome == "failed"
    assert gate.run(wait.replace("until: 1 == 2", "until: missing")).outcome == "failed"


def test_set_fact_that_failed_sets_nothing(gate: Gate) -> None:
    tasks = """
- {name: before, set_fact: {a: old}}
- {name: one, set_fact: {a: new, b: 1}, failed_when: true, ignore_errors: true}
- {name: loop, set_fact: {a: "{{ item }}", b: 1}, failed_when: item == 2, loop: [1, 2, 3], ignore_errors: true}
- {name: after, assert: {that: [a == 'old', b is not defined]}}
- {name: sums, set_fact: {total: "{{ total | default(0) + item }}"}, loop: [1, 2, 3]}
- {name: each sees the last, assert: {that: total == 6}}
"""
    assert [outcome for _, outcome in outcomes(gate.run(tasks))] == ["ok", "ignored", "ignored", "ok", "ok", "ok"]


@pytest.mark.parametrize("command", ["exit 1", "echo x"])
def test_a_task_whose_keywords_cannot_be_known_does_not_run(gate: Gate, command: str) -> None:
    for key, value, said in (
        ("ignore_errors", "{{ 'maybe' }}", "`ignore_errors`: 'maybe' is neither true nor false"),
        ("ignore_errors", "{{ missing }}", "`ignore_errors`: 'missing' is undefined"),
        ("no_log", "{{ 7 }}", "hidden"),
    ):
        [task] = gate.run(f'- {{name: t, command: {command}, {key}: "{value}"}}').tasks
        assert task.outcome == "failed" and said in task.message and gate.guest.ran == []


@pytest.mark.parametrize(
    ("value", "outcome"), [("item == 1", "ignored"), ("item == 2", "failed"), ("r is failed", "failed")]
)
def test_each_item_has_its_own_ignore_errors_which_is_read_before_it_runs(gate: Gate, value: str, outcome: str) -> None:
    task = (
        f"""- {{name: t, command: "exit {{{{ item }}}}", loop: [1], register: r, ignore_errors: "{{{{ {value} }}}}"}}"""
    )
    play = "  vars: {r: {failed: false}}\n"
    assert outcomes(gate.run(task, play=play)) == [("t", outcome)]


@pytest.mark.parametrize("value", ["{{ none }}", "{{ omit }}"])
def test_a_keyword_that_is_nothing_is_as_if_it_were_not_there(gate: Gate, value: str) -> None:
    assert gate.run(f'- {{command: echo x, become: "{value}", ignore_errors: "{value}"}}').outcome == "passed"


def test_conditions_of_set_fact_see_what_it_sets(gate: Gate) -> None:
    tasks = "- {set_fact: {a: old}}\n- {set_fact: {a: new}, failed_when: a == 'old'}\n- {set_fact: {b: 1}, until: b == 1, delay: 0}"
    assert gate.run(tasks).outcome == "passed"


def test_an_item_without_its_label_fails(gate: Gate) -> None:
    result = gate.run(
        '- {name: t, command: "echo {{ item }}", loop: [1, 2], loop_control: {label: "{{ missing }}"},'
        " register: r, ignore_errors: true}\n"
        '- {assert: {that: [r is failed, r.results | length == 2, "r.results[0] is not changed"]}}'
    )
    assert [outcome for _, outcome in outcomes(result)] == ["ignored", "ok"]
    assert "`loop_control.label`: 'missing' is undefined" in result.tasks[0].message


def test_handlers_do_not_run_under_a_condition_that_cannot_be_evaluated(gate: Gate) -> None:
    play = "  ignore_errors: true\n  handlers: [{name: h, debug: {}}]\n"
    tasks = "- {name: t, command: echo x, notify: h}\n- {meta: flush_handlers, when: missing}\n- {name: u, debug: {}}"
    result = gate.run(tasks, play=play)
    assert outcomes(result)[:2] == [("t", "changed"), ("meta", "failed")] and result.outcome == "failed"
    assert "'missing' is undefined" in result.message


@pytest.mark.parametrize("place", ["task", "play"])
def test_a_variable_made_of_one_that_is_not_defined_is_not_defined(gate: Gate, place: str) -> None:
    variables = 'vars: {a: "x{{ missing }}", b: "{{ a }}"}'
    task = "assert: {that: [a is not defined, b is not defined, b | default('d') == 'd']}"
    play = f"  {variables}\n" if place == "play" else ""
    assert gate.run(f"- {task}\n" + (f"  {variables}\n" if place == "task" else ""), play=play).outcome == "passed"
    [used] = gate.run('- {debug: {msg: "{{ b }}"}}', play=f"  {variables}\n").tasks
    assert used.outcome == "failed" and "'missing' is undefined" in used.message


@pytest.mark.parametrize(
    ("keyword", "said"),
    [
        ("timeout: 1.5", "'timeout' must be a whole number"),
        ("run_once: '{{ true }}'", "'run_once' must be literally"),
        ("tags: null", "`tags` has no value"),
        ("loop_control: null", "`loop_control` has no value"),
        ("loop_control: {label: [a]}", "`label` must be text"),
    ],
)
def test_keywords_that_ansible_would_not_take(keyword: str, said: str) -> None:
    [problem] = refuse(f"- hosts: all\n  tasks:\n    - {{command: x, {keyword}}}\n")
    assert problem.startswith("p.yaml:3: ") and said in problem


@pytest.mark.parametrize(("value", "said"), [("1.5", "whole number"), ('"{{ 3 / 2 }}"', "whole number")])
def test_retries_are_whole(gate: Gate, value: str, said: str) -> None:
    task = f"- {{name: t, command: exit 1, retries: {value}, delay: 0}}"
    if "{" in value:
        assert said in gate.run(task).message
    else:
        [problem] = refuse(f"- hosts: all\n  tasks:\n    {task}\n")
        assert problem.startswith("p.yaml:3: ") and said in problem


@pytest.mark.parametrize("value", ["1.7", '"{{ 1.7 }}"'])
def test_a_number_is_not_cut_to_a_whole_one(gate: Gate, value: str) -> None:
    task = f"- {{name: t, wait_for: {{path: /, timeout: {value}}}}}"
    if "{{" in value:
        assert "timeout must be int, not '1.7'" in gate.run(task).message
    else:
        assert "timeout must be int, not '1.7'" in refuse(f"- hosts: all\n  tasks:\n    {task}\n")[0]


# -- handlers ---------------------------------------------------------------------------------------------------------


def test_notify_takes_a_list_that_a_template_makes(gate: Gate) -> None:
    play = "  vars: {both: [h, i], nobody: []}\n  handlers: [{name: h, debug: {}}, {name: i, debug: {}}, {name: j, debug: {}}]\n"
    tasks = '- {name: a, command: echo, notify: "{{ both }}"}\n- {name: b, command: echo, notify: ["{{ omit }}"]}\n- {name: c, command: echo, notify: "{{ nobody }}"}'
    assert [name for name, _ in outcomes(gate.run(tasks, play=play))] == ["a", "b", "c", "h", "i"]


@pytest.mark.parametrize(
    "value", ["['{{ both }}']", "'{{ [both] }}'", "'{{ {1: 2} }}'", "'{{ 1 }}'", "\"{{ 'nobody' }}\""]
)
def test_nothing_ignores_a_notify_that_names_no_handler(gate: Gate, value: str) -> None:
    play = "  vars: {both: [h]}\n  handlers: [{name: h, debug: {}}]\n"
    made = gate.run(f"- {{name: a, command: echo, notify: {value}, ignore_errors: true}}", play=play)
    assert made.outcome == "failed" and "notify: " in made.message


def test_an_item_that_was_skipped_notifies_nobody(gate: Gate) -> None:
    play = "  handlers: [{name: one, debug: {}}, {name: two, debug: {}}]\n"
    task = "- {name: t, command: echo, notify: '{{ item }}', loop: [one, two], when: \"item == 'one'\"}"
    assert [name for name, _ in outcomes(gate.run(task, play=play))] == ["t", "one"]


def test_notify_knows_the_index_of_an_item(gate: Gate) -> None:
    play = "  handlers: [{name: one, debug: {}}, {name: two, debug: {}}]\n"
    control = "loop_control: {loop_var: n, index_var: i}"
    task = f"- {{name: t, command: echo, notify: \"{{{{ n if i else 'two' }}}}\", loop: [x, one], {control}}}"
    assert [name for name, _ in outcomes(gate.run(task, play=play))] == ["t", "one", "two"]


@pytest.mark.parametrize("task", ["debug: {msg: '{{ missing }}'}", "set_fact: {a: '{{ missing }}'}"])
def test_a_task_that_cannot_begin_is_not_judged(gate: Gate, task: str) -> None:
    assert gate.run(f"- {{name: t, {task}, failed_when: false}}").outcome == "failed"


def test_an_until_that_cannot_be_evaluated_leaves_nothing_of_the_result(gate: Gate) -> None:
    task = "- {name: t, command: echo, until: missing, retries: 1, delay: 0, register: r, ignore_errors: true}"
    made = gate.run(f"{task}\n- {{name: u, assert: {{that: [r is failed, r.rc is not defined]}}}}")
    assert made.outcome == "passed", made.message


@pytest.mark.parametrize(
    ("value", "items"), [("'{{ 5 }}'", [5]), ("'{{ none }}'", [None]), ("'{{ {1: 2} }}'", [{1: 2}]), ("'{{ [1, 2] }}'", [1, 2])]
)  # fmt: skip
def test_with_list_makes_one_item_of_what_is_no_list(gate: Gate, value: str, items: list[object]) -> None:
    task = f"- {{name: t, debug: {{msg: x}}, with_list: {value}, register: r}}"
    check = f"- {{name: u, assert: {{that: \"r.results | map(attribute='item') | list == {items}\"}}}}"
    made = gate.run(f"{task}\n{check.replace('None', 'none')}")
    assert made.outcome == "passed", made.message


def test_a_role_with_handlers_is_loaded_once_where_a_condition_decides() -> None:
    files = {"roles/a/tasks/main.yml": "- debug: {}\n", "roles/a/handlers/main.yml": "- {name: h, debug: {}}\n"}
    play = "- hosts: all\n  roles: [a, {role: a, when: false}]\n  tasks: []\n"
    with pytest.raises(DocumentError) as refused:
        parse_playbook(play, "p", read=lambda name: files[name] if name in files else _lack(name))
    assert "has handlers and is loaded more than once, also with `when`" in str(refused.value.problems[0])


def _lack(name: str) -> str:
    raise FileNotFoundError(name)


@pytest.mark.parametrize("word", ["warn=no", "executable=/bin/bash"])
def test_words_that_ansible_takes_for_options_are_no_part_of_a_command(word: str) -> None:
    assert "has no option" in refuse(f"- hosts: all\n  tasks:\n    - command: echo {word}\n")[0]


def test_an_earlier_handler_that_a_handler_notifies_runs_the_next_time(gate: Gate) -> None:
    play = (
        "  handlers:\n    - {name: early, debug: {}}\n    - {name: late, command: echo, notify: [early, later]}\n"
        "    - {name: later, debug: {}}\n"
    )
    tasks = "- {name: a, command: echo, notify: late}\n- meta: flush_handlers\n- {name: b, debug: {}}"
    assert [name for name, _ in outcomes(gate.run(tasks, play=play))] == ["a", "late", "later", "b", "early"]


def test_a_text_is_one_topic_with_its_commas(gate: Gate) -> None:
    play = '  handlers: [{name: h, listen: "a, b", debug: {}}]\n'
    assert len(gate.run('- {name: t, command: echo, notify: "a, b"}', play=play).tasks) == 2
    text = f"- hosts: all\n{play}  tasks: [{{command: x, notify: a}}]\n"
    assert refuse(text) == ["p.yaml:3: there is no handler 'a' in this play"]


@pytest.mark.parametrize(
    ("handlers", "notify", "said"),
    [
        ("[{debug: {}, listen: x}]", "debug", "there is no handler 'debug' in this play"),
        ("[{name: '', debug: {}, listen: x}]", "debug", "there is no handler 'debug' in this play"),
        ("[{name: h, debug: {}}, {name: h, command: x}]", "h", "two handlers of this list are named 'h'"),
    ],
)
def test_names_of_handlers_that_are_refused(handlers: str, notify: str, said: str) -> None:
    text = f"- hosts: all\n  handlers: {handlers}\n  tasks: [{{command: x, notify: {notify}}}]\n"
    assert [one.split(": ", 1)[1] for one in refuse(text)] == [said]


# -- roles and files --------------------------------------------------------------------------------------------------

ROLE = {
    "roles/r/tasks/main.yml": "- {name: of r, command: echo r, notify: [rh, h]}\n",
    "roles/r/handlers/main.yml": "- {name: rh, debug: {msg: r}}\n- {name: h, debug: {msg: of the role}}\n",
}


def read_role(name: str) -> str:
    if name not in ROLE:
        raise FileNotFoundError(name)
    return ROLE[name]


def test_handlers_of_roles_run_first_and_those_of_the_play_win(gate: Gate) -> None:
    play = "  roles: [r]\n  handlers: [{name: h, debug: {msg: of the play}}, {name: p, debug: {}}]\n"
    result = gate.run("- {name: t, command: echo, notify: p}", play=play, read=read_role)
    assert [name for name, _ in outcomes(result)] == ["of r", "t", "rh", "h", "p"]
    assert result.tasks[3].message == "of the play"


def test_a_role_that_is_listed_twice_is_refused_unless_it_may_be() -> None:
    text = "- hosts: all\n  roles:\n    - r\n    - {role: r, vars: {a: 1}}\n    - {role: r, become: true}\n"
    [problem] = refuse(text, ROLE)
    assert problem.startswith("p.yaml:5: the role 'r' is listed twice")
    repeated = {**ROLE, "roles/r/meta/main.yml": "allow_duplicates: true\n"}
    with pytest.raises(DocumentError) as caught:
        parse_playbook(text + "  force_handlers: true\n", "p.yaml", read=lambda name: find_in(repeated, name))
    assert ["force_handlers" in str(one.message) for one in caught.value.problems] == [True]


def find_in(files: dict[str, str], name: str) -> str:
    if name not in files:
        raise FileNotFoundError(name)
    return files[name]


def test_specifications_of_arguments_are_refused() -> None:
    [problem] = refuse(
        "- hosts: all\n  roles: [r]\n", {**ROLE, "roles/r/meta/main.yml": "argument_specs: {main: {options: {}}}\n"}
    )
    assert problem.startswith("roles/r/meta/main.yml:1: argument_specs of roles are not supported")


@pytest.mark.parametrize(
    "name",
    [
        "group_vars/all.yml", "group_vars/all/main.yaml", "group_vars/all", "roles/r/vars/main/one.yml",
        "roles/r/defaults/main/one.yml", "roles/r/defaults/main.json", "roles/r/meta/argument_specs.yml",
    ],
)  # fmt: skip
def test_a_file_that_ansible_would_read_and_this_would_not_is_refused(tmp_path: Path, name: str) -> None:
    for path, text in {**ROLE, name: "a: 1\n", "p.yaml": "- hosts: all\n  roles: [r]\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    with pytest.raises(DocumentError) as caught:
        load_playbook(tmp_path / "p.yaml")
    [problem] = caught.value.problems
    assert "would be read by ansible-playbook, and is not supported" in problem.message
    assert name.startswith(problem.message.split("'")[1])


def test_variables_of_all_guests_that_the_play_names_itself_are_read(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("a: 1\n")
    (tmp_path / "p.yaml").write_text("- hosts: all\n  vars_files: group_vars/all.yml\n  tasks: []\n")
    assert load_playbook(tmp_path / "p.yaml").plays[0].common.vars == {"a": 1}


# -- what is said in front --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("""{assert: {that: "'{{ a }}' != 'b'"}}""", "'that' is an expression; write it without braces"),
        ("""{assert: {that: [true, "a == '{{ b }}'"]}}""", "'that' is an expression; write it without braces"),
        ("""{debug: {var: "a.{{ b }}"}}""", "'var' is an expression; write it without braces"),
        ("{block: [], rescue: [{debug: {}}]}", "`rescue` and `always` require a `block` with tasks"),
        ("{block: null, always: [{debug: {}}]}", "`rescue` and `always` require a `block` with tasks"),
        ("{debug: {msg: '{{ ansible_failed_task.action }}'}}", "only `ansible_failed_task.name` is supported"),
    ],
)
def test_what_would_be_half_true_is_refused(task: str, said: str) -> None:
    [problem] = refuse(f"- hosts: all\n  tasks:\n    - {task}\n")
    assert problem.startswith("p.yaml:3: ") and said in problem


def test_stdin_in_free_form_text_is_the_option(gate: Gate) -> None:
    gate.run("- shell: cat stdin=abc\n- command: echo expand_argument_vars=no")
    first, second = gate.guest.ran
    assert (first.line, first.stdin) == ("cat", b"abc\n")
    assert second.line == "echo expand_argument_vars=no"


@pytest.mark.parametrize("name", ["ü", "none", "True", "not", "self", "a-b", "1a", ""])
@pytest.mark.parametrize(
    "task",
    [
        "{debug: {}, vars: {NAME: 1}}",
        "{set_fact: {NAME: 1}}",
        "{debug: {}, register: NAME}",
        "{debug: {}, loop: [], loop_control: {loop_var: NAME}}",
    ],
)
def test_a_name_that_no_template_can_ask_for_is_refused(task: str, name: str) -> None:
    text = task.replace("NAME", f'"{name}"')
    assert "is not the name of a variable" in refuse(f"- hosts: all\n  tasks:\n    - {text}\n")[0]
