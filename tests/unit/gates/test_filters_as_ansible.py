"""Filters and tests answer as ansible-core's own do, or are refused. `make agreement` asks both."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.gates.load import parse_playbook
from ktrdr_vm.gates.templating import Scope, Templar, TemplateError

NOTHING = Scope((({"two_lines": "a\nb", "pattern": r"v\d"}, False),))


ANSWERS: list[tuple[str, Any]] = [
    # A backslash in a string of an expression stands for itself.
    (r"{{ 'a foo b' | regex_replace('(foo)', '<\1>') }}", "a <foo> b"),
    (r"{{ '0.0.0.0:8000->8000/tcp' | regex_search(':(\d+)->', '\1') | first }}", "8000"),
    (r"{{ 'a1 b2' | regex_findall('\b\w') }}", ["a", "b"]),
    (r"{{ 'v1' is match('v\d\b') }}", True),
    (r"{{ 'v1' is match(pattern) }}", True),
    (r'{{ two_lines.split("\n") | length }}', 1),
    (r"x {{- 'a\\b' -}} y", r"xa\\by"),
    (r"a\1{{ '\1' }}\n", r"a\1\1\n"),
    (r"{% if 'a\tb' | length == 3 %}tab{% endif %}", "tab"),
    # The plain forms.
    ("{{ 'prod' | ternary('y', 'n') }}", "y"),
    ("{{ 'no' | ternary('y', 'n') }}", "y"),
    ("{{ '' | ternary('y', 'n') }}", "n"),
    ("{{ none | ternary('y', 'n', 'z') }}", "z"),
    ("{{ '24.0' is version('24', '==') }}", False),
    ("{{ '1.0' is version('1', '>') }}", True),
    ("{{ 'a' is version('b', '<') }}", True),
    ("{{ '1.10' is version('1.9', '>') }}", True),
    ("{{ '1.0rc1' is version('1.0', '<') }}", False),
    ("{{ '1.0rc1' is version('1.0', '<', version_type='pep440') }}", True),
    ("{{ {'é': 1} | to_json }}", r'{"\u00e9": 1}'),
    ("{{ {'é': 1} | to_json(ensure_ascii=false) }}", '{"é": 1}'),
    ("{{ {'b': 1, 'a': 2} | to_nice_json(indent=1, sort_keys=false) }}", '{\n "b": 1,\n "a": 2\n}'),
    # Keywords.
    ("{{ 'aaa' | regex_replace('a', 'b', count=1) }}", "baa"),
    ("{{ 'aaa' | regex_replace('a', 'b', mandatory_count=3) }}", "bbb"),
    ("{{ {'a': [1]} | combine({'a': [2]}, list_merge='append') }}", {"a": [1, 2]}),
    ("{{ {'a': [1]} | combine({'a': [2]}, list_merge='prepend') }}", {"a": [2, 1]}),
    ("{{ {'a': [1, 2]} | combine({'a': [2, 3]}, list_merge='append_rp') }}", {"a": [1, 2, 3]}),
    ("{{ {'a': [1, 2]} | combine({'a': [2, 3]}, list_merge='prepend_rp') }}", {"a": [2, 3, 1]}),
    ("{{ {'a': [1]} | combine({'a': [2]}, list_merge='keep') }}", {"a": [1]}),
    ("{{ {'a': {'b': [1]}} | combine({'a': {'b': [2]}}, recursive=true, list_merge='append') }}", {"a": {"b": [1, 2]}}),
    ("{{ [{'a': 1}, {'b': 2}] | combine }}", {"a": 1, "b": 2}),
    ("{{ [1, none, [2, [3]]] | flatten(levels=1) }}", [1, 2, [3]]),
]


@pytest.mark.parametrize(("text", "value"), ANSWERS)
def test_answers(text: str, value: Any) -> None:
    assert Templar().render(text, NOTHING) == value


@pytest.mark.parametrize(
    "expression",
    [
        "'aaa' | regex_replace('a', 'b', mandatory_count=4)",
        "{'a': [1]} | combine({'a': [2]}, list_merge='both')",
        "'1.a' is version('1.2', '<')",
        "'' is version('1', '<')",
        "'1' is version('1', '==', strict=true)",
        "'1' is version('1', 'like')",
    ],
)
def test_what_has_no_answer_is_an_error(expression: str) -> None:
    with pytest.raises(TemplateError):
        Templar().render(f"{{{{ {expression} }}}}", NOTHING)


def test_a_condition_takes_its_text_as_it_stands() -> None:
    assert Templar().condition(r"'v1' is match('v\\d')", NOTHING) is True
    assert Templar().condition(r'two_lines.split("\n") | length == 2', NOTHING) is True


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("'aaa' | regex_replace('a', 'b', cont=1)", "regex_replace: got an unexpected keyword argument 'cont'"),
        ("{} | combine({}, merge='append')", "combine: got an unexpected keyword argument 'merge'"),
        ("'1' is version('1', '==', type='loose')", "version: got an unexpected keyword argument 'type'"),
        ("1 | to_json(nice=true)", "to_json: got an unexpected keyword argument 'nice'"),
        ("'a' | ternary('y')", "ternary: missing a required argument"),
        ("'a' | basename('b')", "basename: too many positional arguments"),
    ],
)
def test_an_argument_that_nobody_takes_is_refused_before_the_first_task(expression: str, said: str) -> None:
    from ktrdr_vm.errors import DocumentError

    text = f"""- hosts: all
  gather_facts: false
  tasks:
    - command: touch /first
    - debug: {{msg: "{{{{ {expression} }}}}"}}
"""
    with pytest.raises(DocumentError, match=r"gate\.yaml") as error:
        parse_playbook(text, "gate.yaml")
    assert said in str(error.value) and ":5" in str(error.value)
