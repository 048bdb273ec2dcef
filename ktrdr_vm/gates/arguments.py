"""Parsing the options of a task, in all forms that Ansible supports."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ktrdr_vm.gates.facts import is_variable
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.option_checks import Options, check_options
from ktrdr_vm.gates.specs import MODULES, ModuleSpec

_PREFIXES = ("ansible.builtin.", "ansible.legacy.")
_FULL = {
    "ansible.builtin.systemd_service": "systemd",
    "systemd_service": "systemd",
    "community.docker.docker_compose_v2": "docker_compose_v2",
}


def find_module(name: str) -> str | None:
    """The short name of a supported module, from any of its names."""
    short = _FULL.get(name, name)
    if name in _FULL:
        return short
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            return short if short in MODULES and short != "docker_compose_v2" else None
    return short if short in MODULES else None


def is_template(value: Any) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value or value.startswith("#jinja2:"))


def parse_arguments(module: str, value: Any, extra: Any) -> tuple[dict[str, Any], list[str]]:
    """The options of a task in any form (mapping, `k=v` text, free form, `args:`), and the errors."""
    spec, problems = MODULES[module], []
    arguments: dict[str, Any] = {}
    if extra is not None and not isinstance(extra, dict):
        problems.append("`args` must be a mapping")
    elif extra:
        arguments.update(extra)
    if isinstance(value, dict):
        arguments.update(value)
    elif isinstance(value, str):
        if _is_open(value):
            problems.append(f"{module}: a quote or a template is not closed in {value[:60]!r}")
        if spec.free_form and (word := _find_split_option(module, value)):
            problems.append(f"{module}: the option {word!r} is a template in free-form text; write it under `args`")
        arguments.update(_parse_text(module, value))
    elif value is not None:
        problems.append(f"{module} takes a mapping or text, not {type(value).__name__}")
    if "_raw_params" in arguments and spec.free_form:
        arguments.setdefault(spec.free_form, arguments.pop("_raw_params"))
    named: dict[str, Any] = {}
    for name, item in arguments.items():
        real = spec.aliases.get(name, name)
        if not spec.any_option and real not in spec.options:
            problems.append(f"{module} has no option {name!r}; supported: {', '.join(sorted(spec.options))}")
        elif real in named:
            problems.append(f"{module}: {name!r} occurs twice")
        elif spec.any_option and not is_variable(name) and name != "cacheable":
            problems.append(f"{module}: {name!r} is not the name of a variable")
        named[real] = item
    problems += [
        f"stat: {name} is not supported; leave it out"
        for name in ("get_mime", "get_attributes")
        if module == "stat" and named.get(name) not in (None, False) and not is_template(named[name])
    ]
    return named, problems + _check_literals(module, named)


def _check_literals(module: str, named: Mapping[str, Any]) -> list[str]:
    """The errors in the values that are no templates. A list or mapping with a template in it is known when it is
    rendered."""
    problems, known = [], {}
    for name, item in named.items():
        if item is None or has_template(item):
            continue
        known[name], wrong = coerce(module, name, item)
        problems += [wrong] if wrong else []
    given = frozenset(name for name, item in named.items() if item is not None)
    return problems + check_options(module, Options(known, given))


def has_template(value: Any) -> bool:
    """True if a text, or one in a list or mapping, is a template."""
    if isinstance(value, dict):
        return any(has_template(key) or has_template(item) for key, item in value.items())
    return any(map(has_template, value)) if isinstance(value, list) else is_template(value)


def coerce(module: str, name: str, value: Any, *, rendered: bool = False) -> tuple[Any, str]:
    """An option converted to its type, and its error or an empty text. A `rendered` structure may become text."""
    spec = MODULES[module]
    kind = spec.options.get(name, "raw")
    wrong = f"{module}: {name} must be {kind}, not {str(value)[:60]!r}"
    if value is None or kind == "raw":
        return value, _choice(spec, name, value) if kind == "raw" and name in spec.choices and value is not None else ""
    if kind == "bool":
        parsed = parse_bool(value)
        return (parsed, "") if parsed is not None else (value, wrong)
    if kind in ("int", "float"):
        try:
            if isinstance(value, bool) or (kind == "int" and isinstance(value, float) and not value.is_integer()):
                raise ValueError
            return (int(value) if kind == "int" else float(value)), ""
        except (ValueError, TypeError, OverflowError):
            return value, wrong
    if kind == "list":
        if isinstance(value, list):
            return value, ""
        return (
            [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
        ), "" if not isinstance(value, dict) else wrong
    if kind == "dict":
        return value, "" if isinstance(value, dict) else wrong
    if kind == "mode" and value == "preserve" and module != "copy":
        return value, f"{module}: mode: preserve is not supported; specify the mode"
    if kind == "mode":
        return value, "" if isinstance(value, (str, int)) and not isinstance(value, bool) else wrong
    if isinstance(value, (dict, list)):
        return (json.dumps(value, default=str), "") if rendered else (value, wrong)
    if isinstance(value, bool):
        # As in ansible-core: `yes` and `no` of YAML are the choice that means the same, if there is one.
        same = [choice for choice in spec.choices.get(name, ()) if parse_bool(choice) is value]
        value = same[0] if len(same) == 1 else str(value)
    text = str(value)
    return text, _choice(spec, name, text)


def _choice(spec: ModuleSpec, name: str, value: Any) -> str:
    choices = spec.choices.get(name)
    return (
        f"{name} must be one of {', '.join(choices)}, not {str(value)[:60]!r}"
        if choices and value not in choices
        else ""
    )


# Words of free-form text that Ansible takes for options too, of which a module here has not all: they are refused.
_TAKEN = frozenset({"executable", "warn"})


def _parse_text(module: str, text: str) -> dict[str, Any]:
    """`k=v` words. For a free-form module, only words that name an option are options; the rest is the unchanged
    text."""
    spec = MODULES[module]
    found: dict[str, Any] = {}
    rest: list[str] = []
    for word in split_words(text):
        name, equals, value = word.strip().partition("=")
        known = (
            name in spec.options and name not in ("cmd", "argv", "expand_argument_vars") if spec.free_form else equals
        )
        if equals and (known or (spec.free_form and name in _TAKEN)) and name.isidentifier():
            found[name] = _unquote(value)
        else:
            rest.append(word)
    free = "".join(rest).strip()
    if spec.free_form and free:
        found[spec.free_form] = free
    elif free:
        found["_raw_params"] = free
    return found


def _find_split_option(module: str, text: str) -> str:
    """The name of an option in free-form text whose value is a template, which Ansible splits at its blanks."""
    for word in split_words(text):
        name, equals, value = word.strip().partition("=")
        if equals and name in MODULES[module].options and "{{" in value and " " in value:
            return name
    return ""


def _is_open(text: str) -> bool:
    """True if a quote, `{{` or `{%` is not closed, which Ansible refuses in free-form text."""
    return any(text.count(begin) != text.count(end) for begin, end in (("{{", "}}"), ("{%", "%}"))) or _ends_in_quote(
        text
    )


def _ends_in_quote(text: str) -> bool:
    quote, escaped, depth = "", False, 0
    for index, character in enumerate(text):
        pair = text[index : index + 2]
        if not quote and pair in ("{{", "{%"):
            depth += 1
        elif not quote and pair in ("}}", "%}") and depth:
            depth -= 1
        elif character in "'\"" and not escaped and not depth:
            quote = "" if quote == character else (quote or character)
        escaped = character == "\\" and not escaped
    return bool(quote)


def split_words(text: str) -> list[str]:
    """Split at blanks, but not inside quotes or `{{ }}`; the blanks stay at the words' ends: joining gives the text
    back."""
    words, current, quote, depth, index = [], "", "", 0, 0
    while index < len(text):
        character = text[index]
        pair = text[index : index + 2]
        if character == "\\" and not depth and quote != "'" and len(pair) == 2:
            current, index = current + pair, index + 2
            continue
        if not quote and pair in ("{{", "{%"):
            depth += 1
        elif not quote and pair in ("}}", "%}") and depth:
            depth -= 1
        elif character in "'\"" and not depth:
            quote = "" if quote == character else (quote or character)
        if character.isspace() and not quote and not depth:
            while index < len(text) and text[index].isspace():
                current, index = current + text[index], index + 1
            words.append(current)
            current = ""
            continue
        current, index = current + character, index + 1
    return [*words, current] if current else words


def _unquote(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def split_command(line: str) -> list[str]:
    """The words of a `command` line, split as by a shell. ValueError for an open quote."""
    return shlex.split(line)
