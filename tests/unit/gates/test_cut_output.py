"""Output that was cut decides nothing: a condition over it is an error, and the report says that it was cut."""

from __future__ import annotations

import io
import urllib.request
from email.message import Message
from typing import Any

import pytest

from ktrdr_vm.guest.protocol import GuestResult

LONG = b"x" * 1_500_000
ENDS = {"stdout": (LONG + b"\n17 FAILED\n" + LONG, b""), "short": (b"17 passed\n", b"")}


def print_long(gate: Any) -> None:
    gate.guest.answer = lambda ran: (
        GuestResult(0, *ENDS["stdout"]) if ran.line == "long" else GuestResult(0, *ENDS["short"])
    )


@pytest.mark.parametrize(
    "condition",
    [
        "'FAILED' not in out.stdout",
        "'FAILED' not in out['stdout']",
        "out.stderr == ''",
        "out.stdout_lines | length < 9",
        "[out] | map(attribute='stdout') | select('search', 'FAILED') | list | length == 0",
        "'FAILED' not in wrapped",
    ],
)
def test_an_assertion_over_cut_output_fails_and_says_why(gate: Any, condition: str) -> None:
    print_long(gate)
    result = gate.run(f"""
- {{shell: long, register: out}}
- assert: {{that: ["{condition}"]}}
  vars: {{wrapped: "{{{{ out.stdout }}}}"}}
""")
    assert [task.outcome for task in result.tasks] == ["changed", "failed"]
    assert "the output was cut at 1 MiB" in result.tasks[0].message
    assert "was cut, so a condition over it could be wrong" in result.tasks[1].message
    assert "search it there" in result.tasks[1].message


@pytest.mark.parametrize(
    "task",
    [
        "{set_fact: {text: '{{ out.stdout }}'}}",
        "{set_fact: {text: {inner: ['{{ out.stdout_lines }}']}}}",
        "{set_fact: {count: \"{{ out.stdout | regex_findall('FAILED') | length }}\"}}",
        "{set_fact: {text: '{{ wrapped }}'}}",
        "{shell: short, loop: \"{{ out.stdout_lines | select('search', 'FAILED') | list }}\"}",
        "{shell: \"echo {{ 'bad' if 'FAILED' in out.stdout else 'good' }}\"}",
        "{copy: {content: '{{ out.stdout }}', dest: /tmp/x}}",
        "{shell: short, environment: {SAID: '{{ out.stdout }}'}}",
        "{shell: short, ignore_errors: \"{{ 'FAILED' in out.stdout }}\", failed_when: true}",
        "{template: {src: said.j2, dest: /tmp/x}}",
        "{assert: {that: \"'FAILED' not in wrapped\", fail_msg: '{{ wrapped }}'}}",
    ],
)
def test_nothing_that_is_made_of_cut_output_reaches_a_later_task(gate: Any, task: str) -> None:
    """A fact or a file that is made of it would decide without a condition that names it."""
    print_long(gate)
    (gate.root / "said.j2").write_text("{{ out.stdout }}")
    result = gate.run(f"""
- {{shell: long, register: out}}
- block: [{task}]
  vars: {{wrapped: "{{{{ out.stdout }}}}"}}
""")
    assert [task.outcome for task in result.tasks] == ["changed", "failed"]
    assert "was cut, so a" in result.message or "ignore_errors" in task
    assert [ran.line for ran in gate.guest.ran if ran.line != "long" and "docker" not in ran.line] in ([], ["short"])


def test_cut_output_is_shown(gate: Any) -> None:
    print_long(gate)
    result = gate.run("""
- {shell: long, register: out}
- {name: "{{ out.stdout[:3] }}", debug: {msg: "{{ out.stdout }}"}}
- debug: {var: out.stdout}
- {fail: {msg: "{{ out.stdout[:3] }}"}, ignore_errors: true, loop: ["{{ out }}"], loop_control: {label: "{{ item.stdout[:3] }}"}}
""")
    assert result.outcome == "passed" and result.tasks[1].name == "xxx" and "xxx" in result.tasks[2].message


def test_what_is_known_for_sure_can_still_be_asked(gate: Any) -> None:
    print_long(gate)
    result = gate.run("""
- {shell: long, register: out}
- assert: {that: ["out.rc == 0", "out is changed", "out.truncated"]}
- debug: {msg: "{{ out.stdout[:3] }}"}
- {shell: short, register: whole}
- assert: {that: ["'FAILED' not in whole.stdout", "whole.truncated is not defined"]}
""")
    assert result.outcome == "passed", result.message
    assert [task.message for task in result.tasks[2:4]] == ["xxx", ""]


def test_a_when_and_an_until_over_cut_output_fail(gate: Any) -> None:
    print_long(gate)
    for task in (
        "{shell: long, register: out, until: \"'FAILED' not in out.stdout\", retries: 1, delay: 0}",
        "{shell: long, register: out, failed_when: \"'FAILED' in out.stdout\"}",
        "{shell: long, register: out, changed_when: \"'x' in out.stdout\"}",
    ):
        assert gate.run(f"- {task}").tasks[0].outcome == "failed", task


def test_a_field_of_that_name_in_what_a_program_printed_is_no_mark(gate: Any) -> None:
    gate.guest.answer = lambda ran: GuestResult(0, b'{"truncated": true, "content": "a"}', b"")
    result = gate.run("""
- {shell: gist, register: out}
- assert: {that: ["(out.stdout | from_json).content == 'a'"]}
""")
    assert result.outcome == "passed", result.message


class _Answer(io.BytesIO):
    """An answer as `urllib` gives it. A unit test opens no connection."""

    def __init__(self, url: str) -> None:
        super().__init__(b"fine" if url.endswith("/short") else LONG * 2 + b"FAILED")
        self.headers = Message()
        self.headers["Content-Type"] = "application/json" if url.endswith("/json") else "text/plain"
        self.headers["Truncated"] = "no"
        self.geturl = lambda: url
        self.getcode = lambda: 200


@pytest.fixture
def long_answers(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda self, request, timeout: _Answer(request.full_url))
    return "http://127.0.0.1:80"


@pytest.mark.parametrize(
    ("path", "asked", "condition"),
    [
        ("/text", "return_content: true", "'FAILED' not in answer.content"),
        ("/json", "return_content: true", "answer.json is not defined"),
        ("/json", "return_content: false", "answer.json is not defined"),
    ],
)
def test_an_answer_that_was_cut_decides_nothing(
    gate: Any, long_answers: str, path: str, asked: str, condition: str
) -> None:
    result = gate.run(f"""
- {{uri: {{url: "{long_answers}{path}", {asked}}}, register: answer}}
- assert: {{that: ["{condition}"]}}
""")
    assert [task.outcome for task in result.tasks] == ["ok", "failed"]
    assert "was cut" in result.tasks[0].message
    assert "was cut, so a condition" in result.tasks[1].message


def test_a_whole_answer_is_not_marked_by_a_header_of_that_name(gate: Any, long_answers: str) -> None:
    result = gate.run(f"""
- {{uri: {{url: "{long_answers}/short", return_content: true}}, register: answer}}
- assert: {{that: ["answer.content == 'fine'", "answer.truncated is not defined"]}}
""")
    assert result.outcome == "passed", result.message
