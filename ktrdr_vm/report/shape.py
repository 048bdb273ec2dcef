"""Validation of `report.json` when it is read: exactly the types of the report model."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ktrdr_vm.report.model import RunReport, TestFile

SCHEMA_VERSION = 1


def check_document(document: dict[str, Any]) -> str:
    """The error in a report, or an empty text. A field that this version added may be missing, and is filled in."""
    if document.get("schema_version") != SCHEMA_VERSION:
        return f"schema_version is not {SCHEMA_VERSION}"
    egress = document.get("egress")
    if not isinstance(egress, dict):
        return "egress: not an object"
    for gate in _list(document.get("gates")):
        for task in _list(gate.get("tasks")) if isinstance(gate, dict) else ():
            if isinstance(task, dict) and not all(_is_titled(one) for one in _list(task.get("evidence"))):
                return "gates: evidence without title and text"
    return _check_fields(document, RunReport, "", {"allowed": egress, "denied": egress}, skip={"tests", "evidence"})


def _is_titled(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("title"), str) and isinstance(one.get("text"), str)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_fields(
    data: dict[str, Any], kind: type, path: str, holders: dict[str, dict[str, Any]], skip: set[str]
) -> str:
    for field in fields(kind):
        if field.name in skip:
            continue
        holder = holders.get(field.name, data)
        if field.name not in holder:
            if field.default is MISSING and field.default_factory is MISSING:
                return f"{path}{field.name}: missing"
            value = field.default if field.default_factory is MISSING else field.default_factory()
            holder[field.name] = list(value) if isinstance(value, tuple) else value
            continue
        if wrong := _check(holder[field.name], _hints(kind)[field.name], f"{path}{field.name}", skip):
            return wrong
    return ""


def _check(value: object, kind: Any, path: str, skip: set[str]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is TestFile:
        return ""
    if origin in (Union, types.UnionType):
        return "" if any(not _check(value, one, path, skip) for one in arguments) else f"{path}: {type(value).__name__}"
    if origin is Literal:
        return "" if value in arguments and isinstance(value, str) else f"{path}: {value!a:.60}"
    if origin is tuple:
        if not isinstance(value, list):
            return f"{path}: not a list"
        return next(
            (
                wrong
                for number, one in enumerate(value)
                if (wrong := _check(one, arguments[0], f"{path}[{number}]", skip))
            ),
            "",
        )
    if is_dataclass(kind) and isinstance(kind, type):
        return _check_fields(value, kind, f"{path}.", {}, skip) if isinstance(value, dict) else f"{path}: not an object"
    if origin is dict:
        return "" if isinstance(value, dict) else f"{path}: not an object"
    if kind is float:
        return "" if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{path}: not a number"
    if kind is int and isinstance(value, bool):
        return f"{path}: not a number"
    return "" if isinstance(value, kind) else f"{path}: {type(value).__name__}"
