"""The filters and tests of Ansible that a gate may use, as functions of their arguments, with limits.

`FILTERS` and `TESTS` are complete: the filters of Jinja2 that are available are listed in `templating`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktrdr_vm.gates.filters import data, numbers, serial, text
from ktrdr_vm.gates.filters.booleans import parse_bool, to_bool
from ktrdr_vm.gates.filters.checks import TESTS
from ktrdr_vm.gates.filters.paths import PATHS

__all__ = ["FILTERS", "TESTS", "parse_bool", "to_bool"]

FILTERS: dict[str, Callable[..., Any]] = PATHS | {
    "b64decode": text.b64decode,
    "b64encode": text.b64encode,
    "bool": to_bool,
    "center": text.center,
    "checksum": lambda value: text.digest(value, "sha1"),
    "combinations": data.combinations,
    "combine": data.combine,
    "comment": text.comment,
    "d": data.default,
    "default": data.default,
    "dict2items": data.dict2items,
    "difference": data.difference,
    "extract": data.extract,
    "flatten": data.flatten,
    "format": text.format_text,
    "from_json": serial.from_json,
    "from_yaml": serial.from_yaml,
    "from_yaml_all": serial.from_yaml_all,
    "hash": text.digest,
    "human_readable": numbers.human_readable,
    "human_to_bytes": numbers.human_to_bytes,
    "indent": text.indent,
    "intersect": data.intersect,
    "items2dict": data.items2dict,
    "join": text.join,
    "log": numbers.logarithm,
    "mandatory": data.mandatory,
    "md5": lambda value: text.digest(value, "md5"),
    "permutations": data.permutations,
    "pow": numbers.power,
    "product": data.product,
    "quote": text.quote,
    "random": data.random_of,
    "regex_escape": text.regex_escape,
    "regex_findall": text.regex_findall,
    "regex_replace": text.regex_replace,
    "regex_search": text.regex_search,
    "rekey_on_member": data.rekey_on_member,
    "replace": text.replace,
    "root": numbers.root,
    "sha1": lambda value: text.digest(value, "sha1"),
    "shuffle": data.shuffle,
    "split": text.split,
    "strftime": text.strftime,
    "subelements": data.subelements,
    "symmetric_difference": data.symmetric_difference,
    "ternary": data.ternary,
    "to_datetime": text.to_datetime,
    "to_json": serial.to_json,
    "to_nice_json": serial.to_nice_json,
    "to_nice_yaml": serial.to_nice_yaml,
    "to_uuid": text.to_uuid,
    "to_yaml": serial.to_yaml,
    "type_debug": data.type_debug,
    "union": data.union,
    "unique": data.unique,
    "zip": data.zip_lists,
    "zip_longest": data.zip_longest,
}
