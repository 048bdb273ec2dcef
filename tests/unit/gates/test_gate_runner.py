"""Order, blocks, loops, conditions and results, as Ansible's users know them."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.guest.protocol import GuestResult


def outcomes(result: Any) -> list[str]:
    return [task.outcome for task in result.tasks]


def test_register_when_and_debug(gate: Any) -> None:
    result = gate.run("""
- shell: echo hello
  register: said
- debug: {msg: "{{ said.stdout }} {{ said.rc + 1 }}"}
  when: said is changed
- debug: {msg: never}
  when: [said.rc == 0, said.stdout == 'other']
""")
    assert outcomes(result) == ["changed", "ok", "skipped"]
    assert result.tasks[1].message == "hello 1"
    assert result.outcome == "passed"


def test_a_failure_ends_the_gate_and_names_its_reason(gate: Any) -> None:
    result = gate.run("""
- {name: first, shell: exit 3}
- {name: second, shell: echo never}
""")
    assert (result.outcome, outcomes(result)) == ("failed", ["failed", "skipped"])
    assert result.message == "first: non-zero return code 3: it went wrong"
    assert "first" in result.tasks[1].message
    assert [ran.line for ran in gate.guest.ran] == ["exit 3"]


def test_block_rescue_always(gate: Any) -> None:
    result = gate.run("""
- block:
    - {name: breaks, shell: exit 1}
    - {name: unreached, shell: echo no}
  rescue:
    - debug: {msg: "{{ ansible_failed_result.rc }} {{ ansible_failed_task.name }}"}
  always:
    - debug: {msg: always}
- debug: {msg: after}
""")
    assert outcomes(result) == ["rescued", "skipped", "ok", "ok", "ok"]
    assert [task.message for task in result.tasks[2:]] == ["1 breaks", "always", "after"]
    assert result.outcome == "passed"


def test_always_runs_without_a_rescue_and_the_gate_still_fails(gate: Any) -> None:
    result = gate.run("""
- block:
    - {name: breaks, shell: exit 1}
  always:
    - {name: tidy, debug: {msg: tidied}}
    - {name: tidy too, shell: exit 2}
""")
    assert outcomes(result) == ["failed", "ok", "failed"]
    assert result.message.startswith("breaks:")


def test_ignore_errors_and_failed_when(gate: Any) -> None:
    result = gate.run("""
- shell: exit 4
  ignore_errors: true
  register: first
- shell: exit 5
  register: second
  failed_when: second.rc != 5
  changed_when: false
- shell: echo fine
  register: third
  failed_when: "'fine' in third.stdout"
""")
    assert outcomes(result) == ["ignored", "ok", "failed"]
    assert result.tasks[2].message.startswith("failed_when is true")


def test_until_retries_and_delay(gate: Any) -> None:
    answers = iter([b"0", b"0", b"1"])
    gate.guest.answer = lambda ran: GuestResult(0, next(answers), b"")
    result = gate.run("""
- shell: poll
  register: polled
  until: polled.stdout == '1'
  retries: 5
  delay: 7
- debug: {msg: "{{ polled.attempts }}"}
""")
    assert result.outcome == "passed"
    assert result.tasks[0].attempts == 3
    assert result.tasks[1].message == "3"
    assert gate.clock.time == 14
    assert [event["attempt"] for event in gate.events if event["event"] == "task_retried"] == [1, 2]
    fields = {event["event"]: set(event) - {"event", "gate", "time"} for event in gate.events}
    assert fields == {
        "gate_started": set(),
        "task_started": {"task", "module", "where"},
        "task_retried": {"task", "attempt", "of"},
        "task_finished": {"task", "module", "outcome", "changed", "duration_s", "message"},
        "gate_finished": {"outcome", "duration_s", "message"},
    }


@pytest.mark.parametrize(("retries", "calls"), [("retries: 2", 3), ("", 4), ("retries: 0", 1)])
def test_until_that_never_holds_fails(gate: Any, retries: str, calls: int) -> None:
    result = gate.run(f"""
- shell: echo no
  register: polled
  until: polled.stdout == 'yes'
  delay: 1
  {retries}
""")
    if calls > 1:
        assert result.outcome == "failed"
        assert "until" in result.message
    assert len(gate.guest.ran) == calls


def test_loops_register_their_results_and_run_to_the_end(gate: Any) -> None:
    result = gate.run("""
- shell: "{{ item }}"
  loop: [echo a, exit 1, echo b]
  register: all
  ignore_errors: true
- debug: {msg: "{{ all.results | map(attribute='rc') | list }} {{ all.results[1].item }}"}
- debug: {msg: "{{ item }}"}
  loop: "{{ range(1, 4) | list }}"
  when: item is odd
- shell: echo no
  loop: []
""")
    assert outcomes(result) == ["ignored", "ok", "ok", "skipped"]
    assert result.tasks[1].message == "[0, 1, 0] exit 1"
    assert [ran.line for ran in gate.guest.ran] == ["echo a", "exit 1", "echo b"]


def test_variables_nearest_wins_and_extra_vars_win_over_all(gate: Any) -> None:
    result = gate.run(
        """
- block:
    - debug: {msg: "{{ a }} {{ b }} {{ c }} {{ d }}"}
      vars: {c: task, d: task}
    - set_fact: {c: fact}
    - debug: {msg: "{{ c }}"}
      vars: {c: task}
  vars: {b: block, c: block}
""",
        play="  vars: {a: play, b: play, c: play}\n",
        extra_vars={"d": "{{ 7*7 }}"},
    )
    assert [task.message for task in result.tasks] == ["play block task {{ 7*7 }}", "", "fact"]


def test_environment_and_become_are_inherited_and_merged(gate: Any) -> None:
    gate.run(
        """
- block:
    - shell: echo x
      environment: {B: task}
  become: true
  environment: {A: block, B: block}
- shell: echo y
""",
        environment={"COMPOSE_PROJECT_NAME": "p"},
    )
    first, second = gate.guest.ran
    assert (first.environment, first.become) == ({"COMPOSE_PROJECT_NAME": "p", "A": "block", "B": "task"}, True)
    assert (second.environment, second.become) == ({"COMPOSE_PROJECT_NAME": "p"}, False)


def test_include_tasks_with_variables_in_a_loop(gate: Any) -> None:
    files = {"more.yaml": '- debug: {msg: "{{ item }}{{ v }}"}\n- shell: exit 1\n  when: item == 2\n'}
    result = gate.run(
        """
- include_tasks: more.yaml
  vars: {v: "!"}
  loop: [1, 2, 3]
""",
        read=lambda name: files[name],
    )
    assert [(task.outcome, task.message) for task in result.tasks if task.module == "debug"] == [
        ("ok", "1!"),
        ("ok", "2!"),
    ]
    assert result.outcome == "failed"
    assert result.tasks[-1].where == "more.yaml:2:3"


def test_tags_and_start_at_task(gate: Any) -> None:
    tasks = """
- {name: one, shell: echo 1, tags: [a]}
- {name: two, shell: echo 2, tags: b}
- {name: three, shell: echo 3, tags: [always]}
- {name: four, shell: echo 4, tags: [never, b]}
- {name: five, shell: echo 5}
"""
    assert [task.name for task in gate.run(tasks).tasks] == ["one", "two", "three", "five"]
    assert [task.name for task in gate.run(tasks, tags=("b",)).tasks] == ["two", "three", "four"]
    assert [task.name for task in gate.run(tasks, skip_tags=("a", "always")).tasks] == ["two", "five"]
    assert [task.name for task in gate.run(tasks, start_at_task="three").tasks] == ["three", "five"]
    assert gate.run(tasks, start_at_task="nothing").outcome == "error"


def test_a_lost_guest_is_an_error_and_nothing_runs_after_it(gate: Any) -> None:
    result = gate.run("""
- block:
    - {name: ok, shell: echo 1}
    - {name: gone, shell: lose}
  always:
    - {name: tidy, shell: echo 2}
""")
    assert (result.outcome, outcomes(result)) == ("error", ["changed"])
    assert "lost" in result.message
    assert [ran.line for ran in gate.guest.ran] == ["echo 1", "lose"]


def test_a_timeout_fails_the_task_and_is_not_retried(gate: Any) -> None:
    result = gate.run("""
- shell: hang
  timeout: 5
  retries: 3
""")
    assert (result.outcome, len(gate.guest.ran)) == ("failed", 1)
    assert gate.guest.ran[0].timeout == 5
    assert "its time limit of 5 s" in result.message


def test_the_gates_own_limit_ends_it(gate: Any) -> None:
    result = gate.run("""
- pause: {seconds: 8}
- {name: late, shell: echo 1}
""", gate_timeout=5.0)  # fmt: skip
    assert result.outcome == "failed"
    assert gate.guest.ran == []


def test_what_the_guest_prints_is_never_rendered(gate: Any) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b"{{ 7*7 }} {% raw %}", b"")
    result = gate.run("""
- {name: print, shell: x, register: evil}
- debug: {msg: "{{ evil.stdout }}"}
- set_fact: {kept: "{{ evil.stdout }}"}
- debug: {msg: "{{ kept }}"}
- shell: "echo {{ kept | quote }}"
- debug: {msg: "{{ item }}"}
  loop: "{{ evil.stdout_lines }}"
- debug: {var: kept}
""")
    assert result.outcome == "passed"
    assert result.tasks[1].message == result.tasks[3].message == "{{ 7*7 }} {% raw %}"
    assert gate.guest.ran[1].line == "echo '{{ 7*7 }} {% raw %}'"
    assert "49" not in str(result)


def test_secrets_are_masked_in_everything_that_leaves(gate: Any) -> None:
    def mask(text: str) -> str:
        return text.replace("s3cret", "***")

    gate.guest.answer = lambda ran: GuestResult(1, b"out s3cret", b"err s3cret")
    result = gate.run("""
- {name: "uses {{ token }}", shell: "x {{ token }}"}
""", mask=mask, extra_vars={"token": "s3cret"})  # fmt: skip
    assert "s3cret" not in str(result)
    assert "s3cret" not in str(gate.events)
    assert gate.guest.ran[0].line == "x s3cret"


def test_a_secret_at_the_place_of_the_cut_is_masked_whole(gate: Any) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b"x" * (16 * 1024 - 3) + b"s3cret" + b"y" * 200_000, b"")
    result = gate.run("- shell: x", mask=lambda text: text.replace("s3cret", "***"))
    assert "s3c" not in result.tasks[0].stdout
    assert len(result.tasks[0].stdout) < 66_000


def test_an_undefined_variable_fails_its_own_task(gate: Any) -> None:
    result = gate.run("""
- {name: bad, debug: {msg: "{{ nowhere }}"}, ignore_errors: true}
- {name: worse, shell: echo x, when: nowhere}
""")
    assert outcomes(result) == ["ignored", "failed"]
    assert "nowhere" in result.tasks[1].message


def test_containers_are_described_when_a_task_about_them_fails(gate: Any) -> None:
    inspect = b"""5\n[{"Id": "aaa", "Name": "/p-api-1", "State": {"Status": "running", "ExitCode": 0,
      "Health": {"Status": "unhealthy", "Log": [{"Start": "t", "ExitCode": 7, "Output": "no answer"}]}}},
      {"Id": "bbb", "Name": "/p-db-1", "State": {"Status": "running", "ExitCode": 0}},
      {"Id": "ddd", "Name": "/by-hand", "State": {"Status": "exited", "ExitCode": 9}},
      {"Id": "eee", "Name": "/other-1", "Config": {"Labels": {"com.docker.compose.project": "other"}}, "State": {"Status": "dead"}},
      {"Id": "ccc", "Name": "/p-worker-1", "Config": {"Labels": {"com.docker.compose.project": "p;id"}},
       "State": {"Status": "exited", "ExitCode": 3}}]"""

    def answer(ran: Any) -> GuestResult:
        if "docker inspect" in ran.line:
            return GuestResult(0, inspect, b"")
        if "docker logs" in ran.line:
            token = ran.line.split()[1].rstrip(";")
            logs = ("worker log {{ 1 }}", "hand log", "other log", "api log", "db log")
            return GuestResult(0, "".join(f"{token}\n{log}\n" for log in logs).encode(), b"")
        return GuestResult(1, b"", b"compose: boom\n")

    gate.guest.answer = answer
    result = gate.run("- docker_compose_v2: {project_src: /workspace}", environment={"COMPOSE_PROJECT_NAME": "p;id"})
    evidence = {one.title: one.text for one in result.tasks[0].evidence}
    # Those that are not well, the project's own first, then some of the others.
    assert list(evidence) == [
        "containers",
        "container p-worker-1",
        "container by-hand",
        "container other-1",
        "container p-api-1",
        "container p-db-1",
    ]
    assert "no answer" in evidence["container p-api-1"]
    assert "api log" in evidence["container p-api-1"]
    assert "exit code 3" in evidence["container p-worker-1"]
    assert "compose: boom" in result.message
    asked = next(ran.line for ran in gate.guest.ran if "docker ps" in ran.line)
    assert "'label=com.docker.compose.project=p;id'" in asked


def test_no_evidence_for_tasks_that_have_nothing_to_do_with_containers(gate: Any) -> None:
    assert gate.run("- shell: exit 1").tasks[0].evidence == ()


def test_an_empty_list_of_conditions_judges_nothing(gate: Any) -> None:
    """No condition is true of all, and would make every task failed, changed or done."""
    result = gate.run("- command: echo a\n  failed_when: []\n  changed_when: []\n  until: []")
    assert [task.outcome for task in result.tasks] == ["changed"]
    assert gate.run("- command: exit 1\n  failed_when: []\n  until: []").outcome == "failed"


@pytest.mark.parametrize("key", ["failed_when", "changed_when", "retries", "delay"])
def test_a_keyword_without_a_value_is_refused(gate: Any, key: str) -> None:
    with pytest.raises(DocumentError, match=f"`{key}` has no value"):
        gate.run(f"- command: echo a\n  {key}:")
