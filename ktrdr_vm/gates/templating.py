"""Sandboxed Jinja2 with the variables of the play only.

Texts of the playbook are templates; results of tasks and output of the guest are values, and never rendered,
so `{{ … }}` in the output of a guest stays text. There are no lookups, no environment and no includes.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.environment import TemplateExpression
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ktrdr_vm.gates.bounds import MAX_SIZE, Budget, TemplateError, check_binary, check_method, check_width, measure, too_large
from ktrdr_vm.gates.filters import FILTERS, TESTS

__all__ = ["OMIT", "Scope", "Templar", "TemplateError"]

OMIT = type("Omit", (), {"__repr__": lambda self: "omit"})()
"""`default(omit)`: an option that has this value is left out."""

_LOOKUPS = {"lookup", "query", "q"}
_MAX_DEPTH = 20
_MAX_TEMPLATE = 256 * 1024
_CUT_FIELDS = ("stdout", "stdout_lines", "stderr", "stderr_lines", "content", "json")
_KEPT_FILTERS = frozenset(
    "abs batch capitalize count d default dictsort e escape first float groupby int items last length list lower map max min "
    "reject rejectattr reverse round safe select selectattr slice sort string sum title tojson trim truncate unique "
    "upper urlencode wordcount wordwrap".split()
)  # fmt: skip


class _Undefined(ChainableUndefined, StrictUndefined):
    """Any use is an error, except `a.b.c | default(…)` with a missing part, as in Ansible."""


@dataclass
class Scope:
    """Variables, nearest first. A layer is (names, is it a template): layers from the playbook are, results are not."""

    layers: tuple[tuple[Mapping[str, Any], bool], ...]
    _memo: dict[str, Any] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def find(self, name: str) -> tuple[Any, bool] | None:
        for layer, is_template in self.layers:
            if name in layer:
                return layer[name], is_template
        return None


class _Bounder(NodeTransformer):
    """Rewrites a parsed template so that loops and concatenations check the budget, and refuses constructs without a bound."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("a recursive loop is not supported", node.lineno)
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_bounded_loop", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), "join", [], [], None, None, lineno=node.lineno)

    def refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not supported in a template", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = visit_Macro = visit_CallBlock = refuse


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    deciding = False
    """Set while a condition is evaluated, which must not depend on cut output."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check_whole(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check_whole(obj, argument)
        return super().getitem(obj, argument)

    def _check_whole(self, obj: Any, field: Any) -> None:
        # `changed` distinguishes a registered result from a mapping in the output of a program.
        if self.deciding and isinstance(obj, Mapping) and field in _CUT_FIELDS and obj.get("truncated") is True and "changed" in obj:
            raise TemplateError(
                f"{field} was cut, so a condition over it could be wrong: output is limited to 1 MiB. "
                "Write the output to a file and search it there, such as `shell: make > out.txt; grep -c FAILED out.txt`"
            )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps `str.format`.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        name = str(getattr(__obj, "__name__", ""))
        return super().call(__context, __obj, *check_method(owner, name, args, kwargs), **kwargs)


class Templar:
    """Renders the strings of the playbooks of one gate; it holds no variables."""

    def __init__(self) -> None:
        self._environment = _Environment(
            undefined=_Undefined, keep_trailing_newline=True, autoescape=False, optimized=False, cache_size=0, finalize=_finalize
        )
        kept = {name: _bounded(call) for name, call in self._environment.filters.items() if name in _KEPT_FILTERS}
        self._environment.filters = kept | {name: _bounded(call) for name, call in FILTERS.items()}
        self._environment.filters["_bounded_loop"] = Budget().loop
        self._environment.tests.update(TESTS)
        for name in ("lipsum", "cycler", "joiner"):
            self._environment.globals.pop(name, None)

    def problem(self, text: str, *, expression: bool = False) -> str:
        """The syntax error of a template or an expression, or an empty text."""
        try:
            tree = self._parse(f"{{{{ {text} }}}}" if expression else text)
            called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
            self._check_arguments(tree)
            self._environment.compile(tree)
        except (JinjaError, TemplateError, RecursionError) as error:
            return _say(error)
        lookups = sorted(called & _LOOKUPS)
        return f"{lookups[0]}() is not supported, because a gate may not read from the host" if lookups else ""

    def render(self, value: Any, scope: Scope) -> Any:
        """Render every string in a value. A string that is one `{{ expression }}` keeps the expression's type."""
        if isinstance(value, str):
            return self._render_string(value, scope) if "{{" in value or "{%" in value or "{#" in value else value
        if isinstance(value, dict):
            return {self.render(key, scope): self.render(item, scope) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.render(item, scope) for item in value]
        return value

    def render_file(self, text: str, scope: Scope, *, trim_blocks: bool = True, lstrip_blocks: bool = False) -> str:
        """Render a template file: always text. By default blocks swallow the line break after them, as in Ansible."""
        environment = self._environment.overlay(trim_blocks=trim_blocks, lstrip_blocks=lstrip_blocks)
        tree = self._parse(text, environment)
        return str(self._guard(lambda: self._output(tree, scope)))

    def condition(self, expression: Any, scope: Scope) -> bool:
        """Evaluate `when`, `until` and similar. The result must be a boolean; a text is an error."""
        if isinstance(expression, bool):
            return expression
        if expression is None or expression == "":
            return True
        text = str(expression).strip()
        wrapped = text.startswith("{{") and text.endswith("}}")
        self._environment.deciding = True
        try:
            value = self._render_string(text if wrapped else f"{{{{ {text} }}}}", scope, escape=False)
        finally:
            self._environment.deciding = False
        if isinstance(value, bool):
            return value
        raise TemplateError(
            f"the condition {text[:200]!r} gives {type(value).__name__}, not a boolean; "
            "use `| bool`, `is defined`, `| length > 0` or a comparison"
        )

    def _parse(self, text: str, environment: _Environment | Any = None) -> nodes.Template:
        if len(text) > _MAX_TEMPLATE:
            raise TemplateError(f"a template is longer than {_MAX_TEMPLATE // 1024} KiB")
        try:
            tree: nodes.Template = _Bounder().visit((environment or self._environment).parse(text))
        except (JinjaError, RecursionError) as error:
            raise TemplateError(_say(error)) from None
        return tree

    def _check_arguments(self, tree: nodes.Template) -> None:
        """TemplateError for an argument that a filter or test does not support; none is ignored."""
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            call = (FILTERS if isinstance(node, nodes.Filter) else TESTS).get(node.name)
            if call is None or node.dyn_args is not None or node.dyn_kwargs is not None:
                continue
            try:
                inspect.signature(call).bind(None, *node.args, **{str(keyword.key): None for keyword in node.kwargs})
            except TypeError as error:
                raise TemplateError(f"{node.name}: {error}") from None

    def _double_backslashes(self, text: str) -> str:
        """In strings in `{{ }}` a backslash is literal, as in Ansible: `'\\1'` is a group and not a control character."""
        inside, parts = False, []
        for _line, kind, part in self._environment.lex(text):
            inside = kind == "variable_begin" or (inside and kind != "variable_end")
            parts.append(part.replace("\\", "\\\\") if inside and kind == "string" else part)
        return "".join(parts)

    def _render_string(self, text: str, scope: Scope, *, escape: bool = True) -> Any:
        tree = self._parse(self._double_backslashes(text) if escape and "\\" in text and len(text) <= _MAX_TEMPLATE else text)
        only = tree.body[0] if len(tree.body) == 1 else None
        inner = only.nodes[0] if isinstance(only, nodes.Output) and len(only.nodes) == 1 else None
        if isinstance(inner, nodes.Expr) and not isinstance(inner, nodes.TemplateData):
            return self._guard(lambda: self._native(tree, inner, scope))
        return self._guard(lambda: self._output(tree, scope))

    def _native(self, tree: nodes.Template, expression: nodes.Expr, scope: Scope) -> Any:
        variables = self._variables(tree, scope)
        store = nodes.Assign(nodes.Name("result", "store", lineno=1), expression, lineno=1)
        compiled = self._compiled(nodes.Template([store], lineno=1))
        value = TemplateExpression(compiled, False)(**variables)
        if isinstance(value, Undefined):
            str(value)
        return _plain(value)

    def _output(self, tree: nodes.Template, scope: Scope) -> str:
        variables = self._variables(tree, scope)
        parts, size = [], 0
        for part in self._compiled(tree).generate(**variables):
            parts.append(part)
            size += len(part)
            if size > MAX_SIZE:
                raise too_large()
        return "".join(parts)

    def _compiled(self, tree: nodes.Template) -> Any:
        # Each rendering has a separate budget.
        self._environment.filters["_bounded_loop"] = Budget().loop
        tree.set_environment(self._environment)
        return self._environment.from_string(tree)

    def _variables(self, tree: nodes.Template, scope: Scope) -> dict[str, Any]:
        """Only variables that the template uses are evaluated, so that others may be undefined."""
        found = {}
        for name in find_undeclared_variables(tree):
            if name in scope._memo:
                found[name] = scope._memo[name]
                continue
            entry = scope.find(name)
            if entry is None:
                if name == "omit":
                    found[name] = OMIT
                continue
            value, is_template = entry
            if is_template:
                if name in scope._open or len(scope._open) >= _MAX_DEPTH:
                    raise TemplateError(f"the variable {name!r} refers to itself: {' → '.join([*scope._open, name])}")
                scope._open.append(name)
                try:
                    value = self.render(value, scope)
                finally:
                    scope._open.pop()
            found[name] = scope._memo[name] = value
        return found

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except TemplateError:
            raise
        except UndefinedError as error:
            raise TemplateError(str(error.message or "a variable is not defined")) from None
        except RecursionError:
            raise TemplateError("a template is nested too deeply") from None
        except MemoryError:
            raise TemplateError("a template requires too much memory") from None
        except Exception as error:  # a filter got an invalid argument: an error of the playbook, not of this program
            raise TemplateError(_say(error)) from None


def _say(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error)
    if isinstance(error, RecursionError):
        return "a template is nested too deeply"
    if isinstance(error, TemplateSyntaxError):
        return f"template error: {error.message}"
    return f"template error: {str(error) or type(error).__name__}"[:1000]


def _finalize(value: Any) -> Any:
    measure(value)
    return value


def _plain(value: Any) -> Any:
    """The result of an expression as plain data: generators become lists, and sizes are limited."""
    if isinstance(value, (types.GeneratorType, map, filter, zip, range)) or (
        not isinstance(value, (str, bytes, Mapping, Sequence, set)) and hasattr(value, "__next__")
    ):
        value = list(Budget().loop(value))
    elif isinstance(value, (tuple, set)) or type(value).__name__ in ("dict_items", "dict_keys", "dict_values"):
        value = list(value)
    measure(value)
    return str(value) if isinstance(value, str) else value


def _bounded(call: Any) -> Any:
    """A filter with limits on its arguments and result. The attributes that Jinja sets on the function are kept."""

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        measure(*(value for value in (*arguments, *keywords.values()) if isinstance(value, (str, bytes, list, tuple, dict, set, int))))
        if call.__name__ in ("do_batch", "do_slice", "do_wordwrap", "do_truncate", "do_tojson"):
            check_width(*arguments[1:], *keywords.values())
        result = call(*arguments, **keywords)
        if isinstance(result, (str, bytes, list, tuple, dict)):
            measure(result)
        return result

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(call, mark):
            setattr(bounded, mark, getattr(call, mark))
    return bounded
