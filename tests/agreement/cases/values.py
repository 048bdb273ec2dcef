"""Values of every type that templates have, as expressions, and the variables that they use."""

from __future__ import annotations

from typing import Any

VARIABLES: dict[str, Any] = {
    "lines": "one\ntwo\n\nthree \n",
    "quoted": 'it\'s "quoted" & <b>',
    "slashes": "C:\\dir\\1",
    "wide": "grüße ✓ 日本",
    "yaml_text": "a: 1\nb: [x, 'y']\nc: {d: null, e: yes}\n",
    "json_text": '{"a": [1, 2.5, null, true], "ü": "✓"}',
    "pattern": "v\\d+",
    "nested": "{{ lines | length }}",
    "result": {"changed": True, "failed": False, "rc": 0, "stdout": "out"},
    "failed_result": {"failed": True, "msg": "no"},
    "skipped_result": {"skipped": True, "changed": False},
    "looped_result": {"results": [{"changed": False}, {"changed": True}]},
    "users": [
        {"name": "bob", "groups": ["a", "b"], "age": 30},
        {"name": "amy", "groups": [], "age": 41},
        {"name": "Cid", "groups": ["b"], "age": 30},
    ],
    "services": {"web": {"port": 80, "tags": ["x"]}, "db": {"port": 5432, "tags": []}},
    "deep": [[1, [2, [3, None]]], "x", [], [["y"]]],
}

TEXTS = (
    "''", "' '", "'abc'", "'a b  c'", "'Yes'", "'no'", "'True'", "'1'", "'1.50'", "'-7'", "'null'", "'0x1f'", "'a,b,,c'",
    "'/a/b.tar.gz'", "'/a/b/'", "'a/../b//c'", "'k=v'", "lines", "quoted", "slashes", "wide", "pattern", "json_text", "yaml_text",
)  # fmt: skip
NUMBERS = ("0", "1", "-3", "2.5", "1e3", "10000000000", "1024")
CONSTANTS = ("true", "false", "none", "missing", "missing.part")
LISTS = (
    "[]", "[1, 2, 3]", "[3, 1, 2, 1]", "['b', 'a', 'B', 'a']", "[1, 'a', none]", "[true, false]", "['', none, 0]", "[1.5, 2]", "deep",
    "users", "[['a', 1], ['b', 2]]", "range(3)",
)  # fmt: skip
MAPPINGS = ("{}", "{'a': 1}", "{'b': 2, 'a': {'c': [1]}}", "{1: 'x'}", "services", "result")

ALL = (*TEXTS, *NUMBERS, *CONSTANTS, *LISTS, *MAPPINGS)
FEW = (
    "''",
    "'abc'",
    "'Yes'",
    "'1.50'",
    "wide",
    "0",
    "-3",
    "2.5",
    "true",
    "none",
    "missing",
    "[]",
    "[3, 1, 2, 1]",
    "users",
    "{'a': 1}",
)
