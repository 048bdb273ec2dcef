"""Templates that take for ever, or all memory, end; what only looks like it is answered. In a process of its own, so
not a unit test."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.gates import templating
from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.filters import FILTERS, TESTS
from ktrdr_vm.gates.renderer import IsolatedRenderer
from ktrdr_vm.gates.templating import OMIT, Scope, Templar
from ktrdr_vm.host import process

# Seconds; a gate gives ten times as many.
LIMIT = 0.25
A = "a" * 60
MANY = "(range(100000) | list)"
OTHERS = "(range(100000, 200000) | list)"
LONG = "('a' * 2000000)"


@pytest.fixture(scope="module")
def renderer() -> Iterator[IsolatedRenderer]:
    with IsolatedRenderer(cpu_limit=LIMIT) as made:
        yield made


def render(renderer: IsolatedRenderer, text: Any, **variables: Any) -> Any:
    return renderer.render(text, Scope(((variables, False),)))


EXPRESSIONS = [
    "(a+)+$", "(a|aa)+$", "a*a*a*a*b", "(?:(?:(?:a{0,16}){0,16}){0,16}){0,16}c", "(?:a{1,16})*b", "x.*y", "(?:a{1,99999}){1,99999}b",
]  # fmt: skip
# As a playbook may write them; whether each ends in an answer or an error, it ends, and the next one is answered.
COSTLY = [
    f"{MANY} | difference({OTHERS})", f"{MANY} is subset({OTHERS})", f"{LONG} | wordwrap(1)", f"{MANY} | union({OTHERS})",
    f"{MANY} | intersect({OTHERS})", f"{MANY} is superset({OTHERS})", f"{MANY} | unique", f"{MANY} | sort", f"{MANY} | map('string') | join",
    f"{LONG} in {LONG} ~ 'b'", f"{LONG}.count('aa' * 1000)", f"{LONG} | replace('a', 'bb')", f"{LONG} | urlencode", f"{LONG} | b64encode",
    f"{MANY} | groupby(0)", f"{MANY} | batch(1) | list", "(10 ** 4000) | string", f"{LONG} | title", f"{LONG} | indent(9000)",
    "(range(100000) | map('string') | list) | select('match', '(1+)+x') | list", f"[{MANY}, {MANY}, {MANY}] | flatten | to_nice_json",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_an_expression_that_takes_for_ever_is_ended(renderer: IsolatedRenderer, pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateError, match=r"exceeds 0\.25 s of CPU time"):
        render(
            renderer,
            "{{ subject | regex_search(pattern) }}",
            subject=A * 1000 + "!" if "x" not in pattern else "x" * 300_000,
            pattern=pattern,
        )
    assert time.monotonic() - began < 40
    assert render(renderer, "{{ 1 + 1 }}") == 2


@pytest.mark.parametrize("text", COSTLY)
def test_whatever_a_playbook_writes_ends_and_the_next_template_is_answered(
    renderer: IsolatedRenderer, text: str
) -> None:
    began = time.monotonic()
    try:
        render(renderer, f"{{{{ ({text}) | string | length }}}}")
    except TemplateError as error:
        assert str(error)
    assert time.monotonic() - began < 40
    assert render(renderer, "{{ 1 + 1 }}") == 2


@pytest.mark.parametrize("name", sorted({*FILTERS, *templating._KEPT_FILTERS}))
def test_every_filter_ends_on_the_largest_input(renderer: IsolatedRenderer, name: str) -> None:
    for value in (LONG, MANY):
        for arguments in ("", f"({LONG}, {LONG})"):
            began = time.monotonic()
            with contextlib.suppress(TemplateError):
                render(renderer, f"{{{{ ({value} | {name}{arguments}) | string | length }}}}")
            assert time.monotonic() - began < 40, (value, arguments)


@pytest.mark.parametrize("name", sorted(TESTS))
def test_every_test_ends_on_the_largest_input(renderer: IsolatedRenderer, name: str) -> None:
    for arguments in ("", f"({OTHERS})", f"({LONG})"):
        began = time.monotonic()
        with contextlib.suppress(TemplateError):
            render(renderer, f"{{{{ {MANY} is {name}{arguments} }}}}")
        assert time.monotonic() - began < 40, arguments


VALUES: list[Any] = [
    None, True, 1, 1.5, "text", "\ud800", "é\x00", [1, [2]], {"a": {"b": []}}, {1: "one", (2): None}, {"\0omit": 1}, float("inf"), {},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_went(renderer: IsolatedRenderer, value: Any) -> None:
    scope = Scope((({"it": value}, False),))
    assert renderer.render("{{ it }}", scope) == Templar().render("{{ it }}", scope) == value


def test_what_is_omitted_is_left_out_there_too(renderer: IsolatedRenderer) -> None:
    scope = Scope((({"it": [OMIT, 1, {"a": OMIT, "b": 2}]}, False),))
    assert renderer.render("{{ it }}", scope) == Templar().render("{{ it }}", scope) == [1, {"b": 2}]
    assert renderer.render("{{ missing | default(omit) }}", scope) is OMIT


def test_it_answers_as_the_same_code_does_here(renderer: IsolatedRenderer) -> None:
    scope = Scope(
        (({"said": "{{ 7 * 7 }}"}, False), ({"a": "{{ b }} {{ said }}", "b": "{{ said }}!", "none": None}, True))
    )
    for text in (
        "{{ a }}",
        "{{ missing | default(omit) }}",
        "{{ b is match('.*!') }}",
        "plain",
        ["{{ a }}", {"{{ b }}": 1}],
        "{{ missing }}",
    ):
        answers = []
        for one in (renderer, Templar()):
            try:
                answers.append(one.render(text, scope))
            except TemplateError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
    assert renderer.condition("a == b ~ ' ' ~ said", scope) is True
    assert renderer.render_file("{% if true %}\n{{ b }}\n{% endif %}\n", scope) == "{{ 7 * 7 }}!\n"


def test_what_renders_is_nobody_and_has_no_network(renderer: IsolatedRenderer) -> None:
    """What breaks out of the sandbox of the language is in a process that may do nothing."""
    if os.geteuid() != 0:
        pytest.skip("without root it is the person who runs the gate")
    assert render(renderer, "{{ 1 + 1 }}") == 2
    assert renderer._worker is not None
    status = Path(f"/proc/{renderer._worker.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status and "CapEff:\t0000000000000000" in status
    assert os.readlink(f"/proc/{renderer._worker.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert (
        "lo"
        not in process.run(
            ["nsenter", "-t", str(renderer._worker.pid), "-n", "ip", "-br", "link", "show", "up"], timeout=10
        ).text
    )


def test_what_a_template_process_may_have_is_bounded(renderer: IsolatedRenderer) -> None:
    """Memory, and no file that it could write."""
    assert render(renderer, "{{ 1 + 1 }}") == 2
    assert renderer._worker is not None
    lines = Path(f"/proc/{renderer._worker.pid}/limits").read_text().splitlines()
    bounds = {line[:25].strip(): line[25:].split()[:2] for line in lines[1:]}
    assert bounds["Max address space"] == [str(1 << 30)] * 2 and bounds["Max file size"] == ["0", "0"]
    assert bounds["Max core file size"] == ["0", "0"] and bounds["Max open files"] == ["16", "16"]
