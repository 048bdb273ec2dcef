"""Cases of the language of templates: tests, operators, methods, statements, conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.agreement.cases.model import Case, cross, make_condition, make_expression, make_template, read_lines
from tests.agreement.cases.values import ALL, FEW, LISTS, MAPPINGS, TEXTS

TESTS = ("defined", "truthy", "falsy", "string", "mapping", "iterable", "sequence", "number", "none", "boolean")
RARE_TESTS = (
    "abs", "all", "any", "callable", "divisibleby(2)", "eq(1)", "even", "float", "integer", "isnan", "lower", "nan", "odd", "true", "false", "undefined",
    "upper", "uri", "url", "urn", "contains('a')", "contains(1)", "in([1, 'abc'])", "in('abc')", "subset([1, 2, 3])", "superset([1])",
    "issubset(['a'])", "issuperset([])", "match('a')", "search('b')", "regex('c')", "version('1.4', '>')", "ge(2)", "ne('abc')", "sameas(none)",
    "truthy(convert_bool=true)", "falsy(convert_bool=true)", "failed", "changed", "skipped", "succeeded", "change", "filter", "test",
    "lessthan(2)", "greaterthan(2)", "equalto(2)",
)  # fmt: skip
RESULTS = (
    "result",
    "failed_result",
    "skipped_result",
    "looped_result",
    "{}",
    "{'changed': 'no'}",
    "{'failed': 0}",
    "{'results': []}",
)
RESULT_TESTS = (
    "failed", "failure", "succeeded", "success", "successful", "changed", "change", "skipped", "skip", "timedout", "reachable", "unreachable",
    "started", "finished",
)  # fmt: skip
VERSIONS = (
    "1.0",
    "1",
    "1.10",
    "1.9",
    "2.0rc1",
    "2.0",
    "v1.2",
    "1.2.3-rc1",
    "1.2.3",
    "1.2.3+b1",
    "0",
    "",
    "abc",
    "1..2",
    "1.0.post1",
    "2024-01-01",
)
OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "eq", "ne", "lt", "le", "gt", "ge", "=", "<>")
CONDITIONS: tuple[Any, ...] = (
    True, False, "true", "false", "True", "yes", "no", "1", "0", "1 == 1", "'a'", "''", "none", "[]", "[1]", "{}", "1.5", "missing", "missing is defined", "missing is not defined", "not missing", "result", "result.failed",
    "result.changed", "result is changed", "result is failed", "not result.failed", "result.stdout", "result.stdout | length > 0", "result.rc == 0", "'out' in result.stdout", "result.nope", "result.nope | default(false)",
    "result.nope | default('')", "users", "users | length", "users | length > 2", "{{ 1 == 1 }}", "{{ result.changed }}", "{{ 'a' }}", "1 and true", "true and 1", "true or missing", "false and missing", "true and missing",
    "inventory_hostname != ''", "'yes' | bool", "'x' | bool", "nested | int > 3", "nested == '16'", "pattern is match('v')", "'v1' is match('v\\\\d')", "'v1' is match('v\\d')", "(1, 2)", "1 ==", "{{ missing }}",
    ["true", "1 == 1"], ["true", "1 == 2"], ["1 == 2", "missing"], ["true", "missing"], [True, "true"], [], "", "true | ternary(true, false)", "'a' is string", "users[5]", "users[5] is defined", "services.web.port == 80",
    "services['web']['port'] | string == '80'", "not false", "not (1 == 2 or 3 == 4)", "1 < 2 < 3", "'{{ 1 }}' == '1'", "{{ nested }} == 16",
)  # fmt: skip


def make_language_cases() -> Iterator[Case]:
    yield from cross(ALL, *(f"_ is {name}" for name in TESTS))
    yield from cross(FEW, *(f"_ is {name}" for name in RARE_TESTS))
    yield from cross(RESULTS, *(f"_ is {name}" for name in RESULT_TESTS))
    for left in VERSIONS:
        for number, right in enumerate(VERSIONS):
            yield make_expression(
                f"'{left}' is version('{right}', '{OPERATORS[(number + len(left)) % len(OPERATORS)]}')"
            )
    for kind in ("pep440", "semver", "semantic", "strict", "loose"):
        for left, right in zip(VERSIONS, (*VERSIONS[3:], *VERSIONS[:3]), strict=True):
            yield make_expression(f"'{left}' is version('{right}', '<', version_type='{kind}')")
    yield from (make_expression(one) for one in read_lines("expressions.txt"))
    yield from (make_template(one) for one in read_lines("templates.txt"))
    yield from (make_condition(one) for one in CONDITIONS)
    for value in (*TEXTS[:12], *LISTS[:4], *MAPPINGS[:3]):
        yield make_template(f"<{{{{ {value} }}}}>")
        yield make_condition(value)
