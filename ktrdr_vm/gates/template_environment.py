"""The Jinja2 environment of playbooks: sandboxed, bounded, with values that keep their types, as in Ansible."""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.idtracking import VAR_LOAD_RESOLVE
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ktrdr_vm.gates.bounds import Budget, TemplateError, check_binary, check_method, check_width, measure
from ktrdr_vm.gates.filters import FILTERS, TESTS

OMIT = type("Omit", (), {"__repr__": lambda self: "omit", "__str__": lambda self: ""})()
"""`default(omit)`: an option, an item or the value of a key that is this is left out; in a text it is nothing."""

PREFIXES = ("ansible.builtin.", "ansible.legacy.")
_CUT_FIELDS = ("stdout", "stdout_lines", "stderr", "stderr_lines", "content", "json")
KEPT_FILTERS = frozenset(
    "abs batch capitalize count dictsort e escape filesizeformat first float forceescape groupby int items "
    "last length list lower map max min reject rejectattr reverse round safe select selectattr slice sort "
    "string striptags sum title tojson trim truncate upper urlencode wordcount wordwrap xmlattr".split()
)
_KEPT_TESTS = frozenset(
    "!= < <= == > >= boolean callable defined divisibleby eq equalto escaped even false float ge greaterthan "
    "gt in integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string true "
    "undefined upper".split()
)
# All others fail if the variable is not defined.
_TAKE_UNDEFINED = frozenset({"d", "default", "mandatory", "ternary", "type_debug", "defined", "undefined"})


class UndefinedVariable(ChainableUndefined, StrictUndefined):
    """Any use is an error, except `a.b.c | default(…)` with a missing part, as in Ansible."""


class Bounder(NodeTransformer):
    """Rewrites a parsed template so that loops and concatenations check the budget, and refuses constructs without a
    bound."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("a recursive loop is not supported", node.lineno)
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_bounded_loop", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), "join", [], [], None, None, lineno=node.lineno)

    def shorten(self, node: nodes.Filter | nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        for prefix in PREFIXES:
            node.name = node.name.removeprefix(prefix)
        return node

    def refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not supported in a template", node.lineno)

    visit_Filter = visit_Test = shorten
    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = visit_Macro = visit_CallBlock = (
        refuse
    )


class Generator(NativeCodeGenerator):
    """Yields the value of each expression with its type, also of a constant one. `undeclared` are the variables that
    the template takes from its context, as jinja2.meta finds them by generating the code once more."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.undeclared: set[str] = set()

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        self.undeclared |= {
            name
            for action, name in frame.symbols.loads.values()
            if action == VAR_LOAD_RESOLVE and name is not None and name not in self.environment.globals
        }

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> Any:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class Environment(ImmutableSandboxedEnvironment):
    """Checks operators and methods before they run. `purpose` is what the result is used for; unless it is only shown
    (an empty text), it must not depend on cut output."""

    code_generator_class = Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    purpose = ""

    @staticmethod
    def concat(values: Any) -> Any:
        """Nothing for no value, the value itself if there is only one, text for more; None is left out."""
        found = [value for value in values if value is not None]
        if len(found) < 2:
            return make_plain(found[0]) if found else None
        return "".join(make_text(value) for value in found)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check_whole(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check_whole(obj, argument)
        return super().getitem(obj, argument)

    def _check_whole(self, obj: Any, field: Any) -> None:
        # `changed` distinguishes a registered result from a mapping in the output of a program.
        if (
            self.purpose
            and isinstance(obj, Mapping)
            and field in _CUT_FIELDS
            and obj.get("truncated") is True
            and "changed" in obj
        ):
            raise TemplateError(
                f"{field} was cut, so {self.purpose} could be wrong: output is limited to 1 MiB. Write the output"
                " to a file and search it there, such as `shell: make > out.txt; grep -c FAILED out.txt`"
            )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps `str.format`.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        name = str(getattr(__obj, "__name__", ""))
        result = super().call(__context, __obj, *check_method(owner, name, args, kwargs), **kwargs)
        return result if isinstance(result, range) else _listed(result)


def make_environment() -> Environment:
    environment = Environment(
        undefined=UndefinedVariable,
        trim_blocks=True,
        autoescape=False,
        optimized=False,
        cache_size=0,
        finalize=_finalize,
    )
    kept = {name: call for name, call in environment.filters.items() if name in KEPT_FILTERS}
    environment.filters = {name: _bounded(name, call) for name, call in (kept | FILTERS).items()}
    environment.filters["_bounded_loop"] = Budget().loop
    tests: dict[str, Any] = {name: call for name, call in environment.tests.items() if name in _KEPT_TESTS}
    environment.tests = {name: _defined_only(name, call) for name, call in (tests | TESTS).items()}
    environment.globals = {
        "range": environment.globals["range"],
        "dict": dict,
        "namespace": environment.globals["namespace"],
        "now": _now,
        "undef": _undef,
    }
    return environment


def make_plain(value: Any) -> Any:
    """The value of a template as plain data. TemplateError for a value that a variable cannot have, such as a range."""
    if isinstance(value, Undefined):
        if isinstance(value, StrictUndefined):
            str(value)
        raise TemplateError("the expression has no value: an `if` without `else` is false")
    value = _listed(value) if not isinstance(value, range) else value
    if isinstance(value, range | datetime.timedelta | Namespace):
        raise TemplateError(
            f"a value of type {type(value).__name__} cannot be the result of a template; use `| list` or `| string`"
        )
    measure(value)
    return _without_tuples(value)


def make_text(value: Any) -> str:
    """A part of a text. Containers are shown as Python shows them."""
    if isinstance(value, StrictUndefined):
        str(value)
    measure(value)
    return str(_without_tuples(_listed(value) if not isinstance(value, range) else value))


def _without_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_tuples(one) for key, one in value.items() if one is not OMIT}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_tuples(one) for one in value if one is not OMIT]
    if isinstance(value, Undefined):
        str(value)
    if _is_function(value):
        raise TemplateError(
            f"{getattr(value, '__qualname__', 'a function')} is a function and not a value: call it, or write"
            " `result['items']` for a key that has the name of a method"
        )
    return str(value) if isinstance(value, str) else value


def _is_function(value: Any) -> bool:
    """True for a method that a template names without calling it, such as `result.items`."""
    return callable(value) and not isinstance(value, Undefined)


def _listed(value: Any) -> Any:
    """An iterator as a list, read within the budget."""
    if isinstance(value, types.GeneratorType | Iterator | ItemsView | KeysView | ValuesView | range):
        return list(Budget().loop(value))
    return value


def _finalize(value: Any) -> Any:
    measure(value)
    return value


def _bounded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with limits on its arguments and result. The attributes that Jinja2 sets on the function are kept."""

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        if name not in _TAKE_UNDEFINED:
            require_defined(*arguments, *keywords.values())
        measure(
            *(
                value
                for value in (*arguments, *keywords.values())
                if isinstance(value, (str, bytes, list, tuple, dict, set, int))
            )
        )
        if name in ("batch", "slice", "wordwrap", "truncate", "tojson"):
            check_width(*arguments[1:], *keywords.values())
        result = _listed(call(*arguments, **keywords))
        if isinstance(result, (str, bytes, list, tuple, dict)):
            measure(result)
        return result

    return _with_marks(bounded, call)


def _defined_only(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A test that fails for a variable that is not defined, except those that ask for it."""
    if name in _TAKE_UNDEFINED:
        return call

    def test(*arguments: Any, **keywords: Any) -> Any:
        require_defined(*arguments, *keywords.values())
        return call(*arguments, **keywords)

    return _with_marks(test, call)


def _with_marks(wrapper: Callable[..., Any], call: Any) -> Callable[..., Any]:
    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(call, mark):
            setattr(wrapper, mark, getattr(call, mark))
    return wrapper


def require_defined(*values: Any) -> None:
    for value in values:
        if isinstance(value, StrictUndefined):
            str(value)


def _now(utc: bool = False, fmt: str | None = None) -> Any:
    found = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) if utc else datetime.datetime.now()
    return found if fmt is None else found.strftime(fmt)


def _undef(hint: str | None = None) -> Undefined:
    return UndefinedVariable(hint=hint or "Mandatory variable has not been overridden")
