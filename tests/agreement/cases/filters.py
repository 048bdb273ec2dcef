"""Cases of filters: each with values of every type, and with its options."""

from __future__ import annotations

from collections.abc import Iterator

from tests.agreement.cases.model import Case, cross, make_expression, read_lines
from tests.agreement.cases.values import ALL, FEW, LISTS, MAPPINGS, NUMBERS, TEXTS

# Each is tried with every value.
PLAIN = (
    "b64decode", "b64encode", "basename", "bool", "capitalize", "dirname", "dict2items", "first", "flatten", "float", "from_json",
    "from_yaml", "hash", "int", "items2dict", "join", "last", "length", "list", "lower", "mandatory", "md5", "quote", "regex_escape",
    "sha1", "sort", "split", "splitext", "string", "to_json", "to_nice_json", "to_nice_yaml", "to_yaml", "trim", "type_debug",
    "unique", "upper",
)  # fmt: skip
# Each is tried with a value of each type.
RARE = (
    "abs", "checksum", "combine", "commonpath", "comment", "count", "dictsort", "e", "escape", "from_yaml_all", "human_readable",
    "human_to_bytes", "indent", "items", "log", "max", "min", "normpath", "path_join", "reverse", "root", "round", "safe", "sum",
    "title", "to_uuid", "tojson", "truncate", "urldecode", "urlencode", "urlsplit", "win_basename", "win_dirname", "win_splitdrive",
    "wordcount", "wordwrap", "center", "filesizeformat", "striptags", "forceescape", "pprint", "string | reverse",
)  # fmt: skip
# Each is tried with every text.
ON_TEXTS = (
    "_ | regex_search('[a-z]+')", "_ | regex_findall('[0-9a-z]')", "_ | regex_replace('a', '<\\g<0>>')", "_ | replace('a', 'é')",
    "_ | split(',')", "_ | regex_replace('^', '> ', multiline=true)", "_ | indent(2, true)", "_ | default('d', true)",
    "_ | ternary('y', 'n')", "_ | comment('c')", "_ | regex_search('(?P<x>.)(.)', '\\g<x>', '\\2')", "_ | regex_escape('posix_basic')",
    "_ | b64encode | b64decode", "_ | from_yaml | to_json", "_ | hash('sha256')", "_ | length > 3", "_[0]", "_[-1:]", "_ ~ 1", "_ * 2",
)  # fmt: skip
ON_NUMBERS = (
    "_ | round(1)", "_ | round(0, 'floor')", "_ | int(7)", "_ | float(7)", "_ | pow(2)", "_ | log(10)", "_ | root(3)", "_ | abs",
    "_ | human_readable(true)", "_ | human_readable(unit='K')", "_ | human_to_bytes", "_ | string", "_ | bool", "'%05.1f' | format(_)",
    "_ // 2", "_ % 3", "-_", "_ ** 2", "_ / 4", "_ + 0.5", "_ | to_json", "_ | to_yaml",
)  # fmt: skip
ON_LISTS = (
    "_ | flatten(levels=1)", "_ | flatten(skip_nulls=false)", "_ | map('string') | list", "_ | select | list", "_ | reject | list",
    "_ | map('type_debug') | list", "_ | sort(reverse=true)", "_ | unique(case_sensitive=true)", "_ | zip([7, 8]) | list",
    "_ | zip_longest([7], fillvalue='f') | list", "_ | product(['x']) | list", "_ | combinations(2) | list", "_ | batch(2) | list",
    "_ | permutations(2) | list | length", "_ | slice(2) | list", "_ | join('-')", "_ | sum(start=1)", "_ | to_json", "_ | to_yaml",
    "_ | to_nice_yaml(indent=2)", "_ | intersect([1, 'a']) | sort", "_ | difference([1, 'a']) | map('string') | sort(case_sensitive=true)",
    "_ | union([1]) | map('string') | sort(case_sensitive=true)", "_ | symmetric_difference([1]) | map('string') | sort(case_sensitive=true)", "_ | max", "_ | min",
    "_[0]", "_[9]", "_[:2]", "_ + [0]", "1 in _", "_ | random(seed=1)", "_ | shuffle(seed='x')", "_ == (_ | list)",
)  # fmt: skip
ON_MAPPINGS = (
    "_ | combine({'a': 2})", "_ | combine({'a': {'d': 1}}, recursive=true)", "_ | dict2items(key_name='k', value_name='v')",
    "_ | dictsort", "_ | dictsort(by='value')", "_ | dictsort(true, 'key', true)", "_ | list", "_.keys() | list", "_.values() | list",
    "_.items() | list", "_.get('a', 'none')", "_ | items | list", "_ | to_nice_json(indent=2)", "_ | to_nice_yaml", "_ | to_yaml", "_.a",
    "_['a']", "_.a.c | default('d')", "'a' in _", "_ | length", "_ | map('upper') | list", "_ | to_json(sort_keys=true)",
    "_ | to_yaml(default_flow_style=false)", "_ | to_json(indent=1)", "_ | urlencode", "_ | tojson", "_ | xmlattr",
)  # fmt: skip


def make_filter_cases() -> Iterator[Case]:
    yield from cross(ALL, *(f"_ | {name}" for name in PLAIN))
    yield from cross(FEW, *(f"_ | {name}" for name in RARE))
    yield from cross(TEXTS, *ON_TEXTS)
    yield from cross(NUMBERS, *ON_NUMBERS)
    yield from cross(LISTS, *ON_LISTS)
    yield from cross(MAPPINGS, *ON_MAPPINGS)
    yield from (make_expression(one) for one in read_lines("filters.txt"))
