"""Checks of a parsed template before the first task: filters, tests, functions, methods and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.filters import FILTERS, TESTS
from ktrdr_vm.gates.template_environment import Environment

LOOKUPS = ("lookup", "query", "q")
_CHANGING_METHODS = frozenset(
    "add append clear discard extend insert pop popitem remove setdefault sort update".split()
)
_REFUSED_METHODS = frozenset("encode format_map maketrans translate".split())
# Variables of the host's environment that are always set there, and in a guest have other values.
HOST_VARIABLES = frozenset("HOME HOSTNAME LANG LOGNAME OLDPWD PATH PWD SHELL TERM TMPDIR USER".split())
_DOCS = "docs/playbooks.md lists them"


def check_tree(tree: nodes.Template, environment: Environment) -> None:
    """TemplateError for the first thing in a template that is not supported."""
    found: Iterator[Any] = tree.find_all((nodes.Filter, nodes.Test))
    for node in found:
        with _naming_line(node):
            _check_node(node, environment)
    for call_node in tree.find_all(nodes.Call):
        with _naming_line(call_node):
            _check_call(call_node, environment)


@contextmanager
def _naming_line(node: nodes.Node) -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise TemplateError(str(error), node.lineno) from None


def _check_node(node: nodes.Filter | nodes.Test, environment: Environment) -> None:
    is_filter = isinstance(node, nodes.Filter)
    _check_name(node.name, is_filter, environment)
    for name, inner_is_filter in _find_named(node):
        _check_name(name, inner_is_filter, environment)
    call = (FILTERS if is_filter else TESTS).get(node.name)
    if call is not None and node.dyn_args is None and node.dyn_kwargs is None:
        _check_arguments(node, call)


def _check_name(name: str, is_filter: bool, environment: Environment) -> None:
    known = environment.filters if is_filter else environment.tests
    if name not in known:
        kind = "filter" if is_filter else "test"
        import difflib

        close = difflib.get_close_matches(name, [one for one in known if one[0].isalpha()], 1)
        hint = f"similar: {close[0]}; " if close else ""
        raise TemplateError(f"the {kind} {name!r} is not supported ({hint}{_DOCS})")


def _find_named(node: nodes.Filter | nodes.Test) -> Iterator[tuple[str, bool]]:
    """The filter that `map` names, and the test that `select` and its like name, if they are literal."""
    position = {"map": 0, "select": 0, "reject": 0, "selectattr": 1, "rejectattr": 1}.get(node.name)
    if isinstance(node, nodes.Filter) and position is not None and len(node.args) > position:
        argument = node.args[position]
        if isinstance(argument, nodes.Const) and isinstance(argument.value, str):
            yield argument.value, node.name == "map"


def _check_arguments(node: nodes.Filter | nodes.Test, call: Any) -> None:
    before = [None] if not hasattr(call, "jinja_pass_arg") else [None, None]
    try:
        inspect.signature(call).bind(*before, *node.args, **{str(keyword.key): None for keyword in node.kwargs})
    except TypeError as error:
        raise TemplateError(f"{node.name}: {error}") from None


def _check_call(node: nodes.Call, environment: Environment) -> None:
    called = node.node
    if isinstance(called, nodes.Name):
        if called.name in LOOKUPS:
            _check_lookup(node, called.name)
        elif called.name not in environment.globals and called.name not in ("loop", "caller", "super"):
            raise TemplateError(
                f"the function {called.name}() is not supported; there are {', '.join(sorted(environment.globals))}"
            )
    elif isinstance(called, nodes.Getattr) and called.attr in _CHANGING_METHODS | _REFUSED_METHODS:
        why = (
            "; values are not changed in place: use `+`, `combine` or `union`"
            if called.attr in _CHANGING_METHODS
            else ""
        )
        raise TemplateError(f"the method {called.attr}() is not supported{why}")


def _check_lookup(node: nodes.Call, name: str) -> None:
    kind = node.args[0].value if node.args and isinstance(node.args[0], nodes.Const) else None
    if kind not in ("env", "ansible.builtin.env"):
        shown = repr(kind) if kind else "with a variable name"
        raise TemplateError(
            f"{name}() {shown} is not supported, because a gate may not read from the host; only {name}('env', …) is"
        )
    if (
        node.dyn_args is not None
        or node.dyn_kwargs is not None
        or any(keyword.key != "default" for keyword in node.kwargs)
    ):
        raise TemplateError(f"{name}('env', …) takes names and `default` only")
    for argument in node.args[1:]:
        if isinstance(argument, nodes.Const) and argument.value in HOST_VARIABLES:
            of_guest = f"use ansible_facts.env.{argument.value} for that of the guest"
            raise TemplateError(f"{name}('env', {argument.value!r}) would be the variable of the host; {of_guest}")
