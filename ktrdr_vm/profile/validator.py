"""cerberus with checks that involve several values, and its errors as a flat list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import cerberus
from cerberus.errors import REGEX_MISMATCH, BaseErrorHandler, ErrorList
from cerberus.schema import UnvalidatedSchema

from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.requests import is_limited

Found = list[tuple[tuple[str | int, ...], str]]
"""Path and message of each."""

# Terms of YAML instead of Python.
_KINDS = {
    "dict": "a mapping",
    "list": "a list",
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "float": "a number",
    "object": "that",
}
# bool is a subclass of int, so it is first.
_TYPES = (
    ("dict", dict),
    ("list", list),
    ("string", str),
    ("boolean", bool),
    ("integer", int),
    ("float", float),
    ("object", object),
)


def validate(data: dict[str, Any], schema: dict[str, Any]) -> Found:
    """All violations of the schema in the data. The schema itself is not checked, and uses no shorthand of cerberus."""
    # Checking a schema takes cerberus longer than ten documents do; the tests check every schema of the program.
    validator = Validator(UnvalidatedSchema(schema), error_handler=_Flat)
    validator.validate(data, normalize=False)
    found: Found = validator.errors
    return found


class _Unsorted(ErrorList):  # type: ignore[misc]
    """cerberus sorts all errors after each new one, in Python: thousands of them would take minutes."""

    def sort(self, **_: Any) -> None:
        return


class _NoTree:
    """Of errors by their rule, which nothing asks for: of thousands of one rule it sorts all after each."""

    def add(self, _: object) -> None:
        return


class Validator(cerberus.Validator):  # type: ignore[misc]
    """cerberus with checks that involve several values. The docstrings of rules are a convention of cerberus."""

    @property
    def _errors(self) -> _Unsorted:
        return self._unsorted

    @_errors.setter
    def _errors(self, errors: Iterable[Any]) -> None:
        self._unsorted = _Unsorted(errors)

    @property
    def schema_error_tree(self) -> _NoTree:
        return _NoTree()

    @schema_error_tree.setter
    def schema_error_tree(self, _: object) -> None:
        return

    def _validate_notbool(self, constraint: bool, field: str, value: object) -> None:
        """{'type': 'boolean'}"""
        if constraint and isinstance(value, bool):
            self._error(field, f"must be {_KINDS['integer']}, not true or false")

    def _validate_regex(self, pattern: str, field: str, value: object) -> None:
        """{'type': 'string'}"""
        # fullmatch: the regex check of cerberus accepts a trailing line feed, which would end up in a configuration.
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            self._error(field, REGEX_MISMATCH)

    def _check_with_one_source(self, field: str, value: object) -> None:
        if isinstance(value, dict) and not {"env", "file", "command"} & value.keys():
            self._error(field, "must have one of env, file and command")

    def _check_with_one_destination(self, field: str, value: object) -> None:
        if isinstance(value, dict) and not {"host", "cidr", "preset"} & value.keys():
            self._error(field, "must have one of host, cidr and preset")

    def _check_with_ports_of_requests(self, field: str, value: object) -> None:
        if isinstance(value, dict) and is_limited(value) and value.get("ports", [443]) != [443]:
            self._error(
                field, "with methods or paths, the only port is 443, because requests are sent over verified TLS"
            )

    def _check_with_secret_path(self, field: str, value: object) -> None:
        try:
            path = scalars.parse_guest_path(value)
        except ValueError as reason:
            self._error(field, str(reason))
            return
        if not path.startswith("/run/secrets/") or path.count("/") != 3:
            self._error(field, "must be /run/secrets/ and a name, because secrets are kept on a tmpfs")


class _Flat(BaseErrorHandler):  # type: ignore[misc]
    """The error tree of cerberus as a flat list of (path, message)."""

    messages = {
        0x02: "is required",
        0x03: "unknown key",
        0x22: "must not be empty",
        0x23: "must not be null",
        0x24: "must be {kinds}, not {kind}{quotes}",
        0x06: "cannot be used together with {constraint}",
        0x27: "has fewer than {constraint} entries",
        0x28: "has more than {constraint} entries",
        0x41: "does not match {constraint}",
        0x42: "is less than {constraint}",
        0x43: "is more than {constraint}",
        0x44: "{value!r} is not one of {constraint}",
    }

    def __call__(self, errors: Iterable[Any]) -> Found:
        found: Found = []
        for error in errors:
            if error.child_errors:
                found.extend(self(error.child_errors))
            elif error.code == 0:
                found.append((tuple(error.document_path), str(error.info[0])))
            else:
                template = self.messages.get(error.code, f"violates the rule {error.rule}")
                value = error.value if not isinstance(error.value, str) else error.value[:80]
                found.append((tuple(error.document_path), _fill(template, error.constraint, value)))
        return found


def _fill(template: str, constraint: Any, value: object) -> str:
    named = constraint if isinstance(constraint, (list, tuple)) else [constraint]
    kinds = " or ".join(_KINDS.get(kind, str(kind)) for kind in named)
    quotes = "; quotes make it text" if constraint == "string" and not isinstance(value, (dict, list)) else ""
    return template.format(constraint=_show(constraint), kinds=kinds, kind=_describe(value), quotes=quotes, value=value)


def _describe(value: object) -> str:
    return next(_KINDS[kind] for kind, types in _TYPES if isinstance(value, types))


def _show(constraint: object) -> str:
    if isinstance(constraint, (list, tuple, set)):
        return ", ".join(str(part) for part in constraint)
    return str(constraint)
