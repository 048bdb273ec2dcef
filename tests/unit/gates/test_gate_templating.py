"""The sandbox: types are kept, only the play's variables are there, and nothing is large or slow."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jinja2.meta import find_undeclared_variables

from ktrdr_vm.gates.template_environment import make_environment
from ktrdr_vm.gates.templating import OMIT, Scope, Templar, TemplateError


def render(text: Any, **variables: Any) -> Any:
    return Templar().render(text, Scope(((variables, True),)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ 7 * 7 }}", 49),
        ("a{{ 7 * 7 }}", "a49"),
        ("{{ [1, 2] }}", [1, 2]),
        ("{{ {'a': 1} }}", {"a": 1}),
        ("{{ 'x' == 'x' }}", True),
        ("{{ none }}", None),
        ("{{ omit }}", OMIT),
        ("{{ a.b.c | default('d') }}", "d"),
        ("{{ [3, 1] | sort | map('string') | join('-') }}", "1-3"),
        ("{{ 'a' ~ 1 }}", "a1"),
        ("{{ '/x/y.txt' | basename }} {{ '/x/y.txt' | dirname }}", "y.txt /x"),
        ("{{ 'a b' | quote }}", "'a b'"),
        ("{{ 'abc' | b64encode | b64decode }}", "abc"),
        ("{{ '{\"a\": [1]}' | from_json }}", {"a": [1]}),
        ("{{ {'a': 1} | to_json }}", '{"a": 1}'),
        ("{{ 'yes' | bool }}", True),
        ("{{ 'v1.2' | regex_search('[0-9.]+') }}", "1.2"),
        ("{{ 'a1b2' | regex_replace('[0-9]', '-') }}", "a-b-"),
        ("{{ 'a1b2' | regex_search('([a-z])(?P<digit>[0-9])', '\\1', '\\g<digit>') }}", ["a", "1"]),
        ("{{ 'a1b2' | regex_findall('[a-z]') }}", ["a", "b"]),
        ("{{ 'a1b2' | regex_findall('([a-z])([0-9])') }}", [["a", "1"], ["b", "2"]]),
        ("{{ 'A' is search('a', ignorecase=true) and 'ba' is not match('a') }}", True),
        ("{{ {'a': 1} | combine({'b': 2}) }}", {"a": 1, "b": 2}),
        ("{{ '1.10' is version('1.9', '>') }}", True),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("no template", "no template"),
        (["{{ 1 }}", {"k": "{{ 2 }}"}], [1, {"k": 2}]),
    ],
)
def test_values(text: Any, value: Any) -> None:
    assert render(text) == value


def test_variables_may_be_templates_and_are_looked_up_when_used() -> None:
    assert render("{{ a }}", a="{{ b }}/x", b="{{ c + 1 }}", c=3, broken="{{ nowhere }}") == "4/x"
    with pytest.raises(TemplateError, match="refers to itself"):
        render("{{ a }}", a="{{ b }}", b="{{ a }}")


def test_a_result_is_a_value() -> None:
    scope = Scope((({"result": "{{ 7*7 }}"}, False), ({"wraps": "<{{ result }}>"}, True)))
    assert Templar().render("{{ result }} {{ wraps }}", scope) == "{{ 7*7 }} <{{ 7*7 }}>"


@pytest.mark.parametrize(
    "text",
    [
        "{{ nowhere }}",
        "{{ nowhere.a }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ [].append(1) }}",
        "{{ {}.update(a=1) }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''.format.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ lookup('pipe', 'id') }}",
        "{{ lipsum() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{{ x | nofilter }}",
        "{{ 'x' is failed }}",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        render(text)


BOMBS = [
    "{{ 'a' * 1000000000 }}",
    "{{ 1000000000 * 'a' }}",
    "{{ [1] * 1000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a' | indent(1000000000, first=true) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a,' * 1000000).split(',') | join('b' * 1000000) }}",
    "{{ ('b' * 1000000).join(['', '', '', '', '', '', '']) }}",
    "{{ range(1000000000) | list }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
    "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | to_json }}",
    "{% set n = namespace(x=9) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "{{ [" + "[" * 3000 + "]" * 3000 + "] }}",
    "{{ " + "x" * 1_000_000 + " }}",
]


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_bombs_do_not_go_off(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError):
        render(text)
    assert time.monotonic() - started < 6


def test_variables_that_double_are_bounded() -> None:
    layers = {f"a{n}": f"{{{{ a{n - 1} }}}}{{{{ a{n - 1} }}}}" for n in range(1, 60)} | {"a0": "x" * 1000}
    started = time.monotonic()
    with pytest.raises(TemplateError):
        render("{{ a59 }}", **layers)
    with pytest.raises(TemplateError):
        render("{{ a19 }}", **layers)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a == 1", True),
        ("a is defined and b is not defined", True),
        (True, True),
        ("", True),
        (None, True),
        ("{{ a == 2 }}", False),
        ("a in [1, 2]", True),
    ],
)
def test_conditions(expression: Any, value: bool) -> None:
    assert Templar().condition(expression, Scope((({"a": 1}, True),))) is value


@pytest.mark.parametrize("expression", ["a", "'text'", "[]", "b", "b.c == 1"])
def test_a_condition_must_be_a_boolean(expression: str) -> None:
    with pytest.raises(TemplateError):
        Templar().condition(expression, Scope((({"a": 1}, True),)))


def test_a_condition_over_a_result_does_not_render_it() -> None:
    scope = Scope((({"evil": "{{ true }}"}, False),))
    with pytest.raises(TemplateError):
        Templar().condition("evil", scope)
    assert Templar().condition("evil == '{{ ' ~ 'true }}'", scope) is True


def test_a_variable_may_be_named_as_a_lookup() -> None:
    assert Templar().check("q.status == 200", expression=True).problem == ""
    assert "not supported" in Templar().check("q('pipe', 'id')", expression=True).problem


@pytest.mark.parametrize(
    "text",
    [
        "{{ a }}{{ b.c['d'] }}",
        "{% for one in many if one is defined %}{{ one ~ other }}{{ loop.index }}{% endfor %}{{ one }}",
        "{% set x = y %}{{ x }}{{ range(z) | map('string') | join(w) }}",
        "{% if a %}{% set b = 1 %}{% endif %}{{ b }}{{ dict(c=d) | combine(e) }}{{ f | default(g) }}",
    ],
)
def test_the_names_of_a_template_are_those_that_jinja_finds(text: str) -> None:
    templar = Templar()
    expected = find_undeclared_variables(make_environment().parse(text))
    assert templar.check(text).names.keys() == expected


@pytest.mark.parametrize(
    "text", ["{% for a in b %}" * 25 + "{% endfor %}" * 25, "{% if a %}" * 110 + "{% endif %}" * 110]
)
def test_blocks_that_python_cannot_nest_are_an_error_of_the_template(text: str) -> None:
    assert "nested too deeply" in Templar().check(text).problem
