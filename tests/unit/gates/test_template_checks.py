"""What a template may name is checked before the first task; values keep their types."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.gates.templating import Scope, Templar, TemplateError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ a | to_jsn }}", "the filter 'to_jsn' is not supported (similar: to_json; "),
        ("{{ a is deffined }}", "the test 'deffined' is not supported (similar: defined; "),
        ("{{ a | map('to_jsn') }}", "the filter 'to_jsn' is not supported"),
        ("{{ a | selectattr('b', 'deffined') }}", "the test 'deffined' is not supported"),
        ("{{ a.append(1) }}", "the method append() is not supported; values are not changed in place"),
        ("{{ a.encode() }}", "the method encode() is not supported"),
        ("{{ lipsum() }}", "the function lipsum() is not supported"),
        ("{{ lookup('file', '/etc/passwd') }}", "lookup() 'file' is not supported"),
        ("{{ lookup(kind, 'x') }}", "lookup() with a variable name is not supported"),
        ("{{ lookup('env', 'HOME') }}", "use ansible_facts.env.HOME for that of the guest"),
        ("{{ lookup('env', 'X', wantlist=true) }}", "takes names and `default` only"),
        ("#jinja2: trim_blocks:False\n{{ a }}", "a header `#jinja2:` is not supported"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    assert said in Templar().check(text).problem


def test_a_problem_has_its_line() -> None:
    assert Templar().check("one\n\n{{ a | nothing }}").line == 3
    assert Templar().check("one\n{% if %}").line == 2
    assert Templar().check("{{ a | ansible.builtin.b64encode }}").problem == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{% if true %}{{ [1] }}{% endif %}", [1]),
        ("{% set x = 5 %}{{ x }}", 5),
        ("{{ none }}", None),
        ("a{{ none }}b", "ab"),
        ("x{{ (1, 2) }}", "x[1, 2]"),
        ("x{{ [1, 2] | map('string') }}", "x['1', '2']"),
        ("{% for i in range(2) %}\n{{ i }}\n{% endfor %}\n", "0\n1\n"),
        ("{{ 'a' | ansible.builtin.b64encode }}", "YQ=="),
        ("{{ [1, none, [2, [3]]] | flatten }}", [1, 2, 3]),
        ("{{ {'a': 1} | to_nice_yaml }}", "a: 1\n"),
        ("{{ 'a: [1, x]' | from_yaml }}", {"a": [1, "x"]}),
        ("{{ ['a', 'b'] | zip([1, 2]) | items2dict(key_name=0, value_name=1) }}", {"a": 1, "b": 2}),
        ("{{ '1.2.3-rc1' is version('1.2.3', '<', version_type='semver') }}", True),
        ("{{ 'http://h:81/p' | urlsplit('port') }}", 81),
        ("{{ '1.5 MB' | human_to_bytes }}", 1572864),
        ("{{ [{'a': 1}, {'a': 1}] | unique }}", [{"a": 1}]),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = Templar().render(text, Scope(()))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' if false }}",
        "{{ missing is none }}",
        "{{ range(3) }}",
        "{{ 5 | basename }}",
        "{{ 0 | default('x', 'yes') }}",
        "{{ [1] is subset([[1]]) }}",
        "{{ range(200) | permutations }}",
        "{{ range(99999) | product(range(99999)) }}",
        "{{ '&a [*a, *a]' | from_yaml }}",
        "{{ ('a' * 2000000) | from_yaml }}",
        "{{ lookup('env', name) }}",
    ],
)
def test_what_has_no_value_is_an_error(text: str) -> None:
    with pytest.raises(TemplateError):
        Templar().render(text, Scope((({"name": "PATH"}, False),)))


def test_aliases_that_describe_too_much_are_refused() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(TemplateError, match="larger than"):
        Templar().render("{{ text | from_yaml }}", Scope((({"text": text}, False),)))
