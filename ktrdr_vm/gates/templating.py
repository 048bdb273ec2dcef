"""Sandboxed Jinja2 with the variables of the play only.

Texts of the playbook are templates; results of tasks and output of the guest are values, and never rendered,
so `{{ … }}` in the output of a guest stays text. There are no lookups, no environment and no includes.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError, UndefinedError, nodes
from jinja2.meta import find_undeclared_variables

from ktrdr_vm.gates.bounds import MAX_SIZE, Budget, TemplateError, UndefinedValue, measure, too_large
from ktrdr_vm.gates.template_checks import HOST_VARIABLES, LOOKUPS, check_tree
from ktrdr_vm.gates.template_environment import (
    KEPT_FILTERS,
    OMIT,
    Bounder,
    Environment,
    Generator,
    UndefinedVariable,
    make_environment,
    make_text,
)

__all__ = ["OMIT", "Scope", "Templar", "TemplateError", "check_template"]

Names: TypeAlias = dict[str, set[str]]
"""Variables, each with the keys that are taken from it; the empty key stands for a use of the whole, or of a key that
is computed."""

_PATH_TESTS = {
    "directory": "directory",
    "is_dir": "directory",
    "file": "file",
    "is_file": "file",
    "exists": "exists",
    "link": "link",
    "is_link": "link",
    "link_exists": "lexists",
}
_KEPT_FILTERS = KEPT_FILTERS
_VALUE = "a value that is made of it"
_MAX_DEPTH = 20
_MAX_TEMPLATE = 256 * 1024


class Checked(NamedTuple):
    """The line and the text of a template's first error, or 0 and an empty text; then `names` are those that it
    uses."""

    line: int
    problem: str
    names: Names


@dataclass
class Scope:
    """Variables, nearest first. A layer is (names, is it a template): layers from the playbook are, results are not."""

    layers: tuple[tuple[Mapping[str, Any], bool], ...]
    probe: Callable[[str], str] | None = None
    """The kind of a path of the host: `file`, `directory`, `other` or nothing, with `link ` before it for a link."""
    _memo: dict[tuple[str, bool], Any] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def find(self, name: str) -> tuple[Any, bool] | None:
        for layer, is_template in self.layers:
            if name in layer:
                return layer[name], is_template
        return None


class Templar:
    """Renders the strings of the playbooks of one gate; it holds no variables."""

    def __init__(self) -> None:
        self._environment = make_environment()
        self._probe: Callable[[str], str] | None = None
        for name, wanted in _PATH_TESTS.items():
            self._environment.tests[name] = functools.partial(self._is_path, name, wanted)  # type: ignore[assignment]

    def check(self, text: str, *, expression: bool = False) -> Checked:
        """What is wrong with a template or an expression, and what it uses; it is parsed once for both."""
        try:
            if text.startswith("#jinja2:"):
                return Checked(1, "a header `#jinja2:` is not supported; remove it", {})
            tree = self._parse(f"{{{{ {text} }}}}" if expression else text)
            check_tree(tree, self._environment)
            code = io.StringIO()
            generator = Generator(self._environment, None, None, code, optimized=self._environment.optimized)
            generator.visit(tree)
            compile(code.getvalue(), "<template>", "exec")
        except (JinjaError, TemplateError, RecursionError) as error:
            return Checked(getattr(error, "lineno", None) or 1, _say(error), {})
        except SyntaxError:
            # Python limits how many blocks contain each other, and how deep they are indented.
            return Checked(1, "a template is nested too deeply", {})
        return Checked(0, "", _find_names(tree, generator.undeclared))

    def render(self, value: Any, scope: Scope, *, shown: bool = False) -> Any:
        """Render every string in a value. A string that is one `{{ expression }}` keeps the expression's type.

        A value that is only `shown` to a person may be made of output that was cut; any other may not.
        """
        with self._for("" if shown else _VALUE):
            return self._render(value, scope)

    @contextlib.contextmanager
    def _for(self, purpose: str) -> Iterator[None]:
        outer, self._environment.purpose = self._environment.purpose, purpose
        try:
            yield
        finally:
            self._environment.purpose = outer

    def _render(self, value: Any, scope: Scope) -> Any:
        if isinstance(value, str):
            return self._render_string(value, scope) if "{{" in value or "{%" in value or "{#" in value else value
        if isinstance(value, dict):
            pairs = [(self._render(key, scope), self._render(item, scope)) for key, item in value.items()]
            return {key: item for key, item in pairs if item is not OMIT}
        if isinstance(value, (list, tuple)):
            return [one for one in (self._render(item, scope) for item in value) if one is not OMIT]
        return value

    def render_file(self, text: str, scope: Scope, *, trim_blocks: bool = True, lstrip_blocks: bool = False) -> str:
        """Render a template file: always text. By default blocks swallow the line break after them, as in Ansible."""
        environment = self._environment.overlay(trim_blocks=trim_blocks, lstrip_blocks=lstrip_blocks)
        tree = self._parse(text, environment)
        with self._for(_VALUE):
            value = self._guard(lambda: self._output(tree, scope))
        return "" if value is None else str(_with_line_breaks(text, make_text(value)))

    def condition(self, expression: Any, scope: Scope) -> bool:
        """Evaluate `when`, `until` and similar. The result must be a boolean; a text is an error."""
        if isinstance(expression, bool):
            return expression
        if expression is None or expression == "":
            return True
        text = str(expression).strip()
        wrapped = text.startswith("{{") and text.endswith("}}")
        with self._for("a condition over it"):
            value = self._render_string(text if wrapped else f"{{{{ {text} }}}}", scope, escape=False)
        if isinstance(value, bool):
            return value
        raise TemplateError(
            f"the condition {text[:200]!r} gives {type(value).__name__}, not a boolean; "
            "use `| bool`, `is defined`, `| length > 0` or a comparison"
        )

    def _parse(self, text: str, environment: Environment | None = None) -> nodes.Template:
        if len(text) > _MAX_TEMPLATE:
            raise TemplateError(f"a template is longer than {_MAX_TEMPLATE // 1024} KiB")
        try:
            tree: nodes.Template = Bounder().visit((environment or self._environment).parse(text))
        except (JinjaError, RecursionError) as error:
            raise TemplateError(_say(error), getattr(error, "lineno", None) or 0) from None
        return tree

    def _double_backslashes(self, text: str) -> str:
        """In strings in `{{ }}` a backslash is literal, as in Ansible: `'\\1'` is a group and not a control
        character."""
        inside, parts = False, []
        # The lexer drops one line break at the end, and the parser drops one again.
        last = "\n" if text.endswith("\n") else ""
        for _line, kind, part in self._environment.lex(text):
            inside = kind == "variable_begin" or (inside and kind != "variable_end")
            parts.append(part.replace("\\", "\\\\") if inside and kind == "string" else part)
        return "".join(parts) + last

    def _render_string(self, text: str, scope: Scope, *, escape: bool = True) -> Any:
        tree = self._parse(
            self._double_backslashes(text) if escape and "\\" in text and len(text) <= _MAX_TEMPLATE else text
        )
        return _with_line_breaks(text, self._guard(lambda: self._output(tree, scope)))

    def _output(self, tree: nodes.Template, scope: Scope) -> Any:
        variables = self._variables(tree, scope)
        self._probe = scope.probe
        parts, size = [], 0
        for part in self._compiled(tree).generate(**variables):
            parts.append(part)
            size += measure(part)
            if size > MAX_SIZE:
                raise too_large()
        return self._environment.concat(parts)

    def _is_path(self, name: str, wanted: str, path: Any) -> bool:
        """A test of a path of the host."""
        if self._probe is None or not isinstance(path, str):
            raise TemplateError(f"{name}: requires the path of a file of the playbook")
        found = self._probe(path)
        kind = found.removeprefix("link ")
        return {"exists": kind != "", "link": found.startswith("link "), "lexists": found != ""}.get(
            wanted, kind == wanted
        )

    def _compiled(self, tree: nodes.Template) -> Any:
        # Each rendering has a separate budget.
        self._environment.filters["_bounded_loop"] = Budget().loop
        tree.set_environment(self._environment)
        return self._environment.from_string(tree)

    def _variables(self, tree: nodes.Template, scope: Scope) -> dict[str, Any]:
        """Only variables that the template uses are evaluated, so that others may be undefined."""
        found: dict[str, Any] = {}
        called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)} & set(
            LOOKUPS
        )
        for name in find_undeclared_variables(tree):
            if name in called:
                entry = scope.find(name)
                found[name] = functools.partial(_look_up, name, entry[0] if entry else {})
                continue
            # A variable that was only shown is evaluated again if something depends on it.
            known = (name, bool(self._environment.purpose))
            if known in scope._memo:
                found[name] = scope._memo[known]
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
                    value = self._render(value, scope)
                except UndefinedValue as error:
                    if not isinstance(value, str):
                        raise
                    # As in Ansible, a variable made of one that is not defined is not defined either.
                    found[name] = UndefinedVariable(hint=str(error))
                    continue
                finally:
                    scope._open.pop()
            found[name] = scope._memo[known] = value
        return found

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except TemplateError:
            raise
        except UndefinedError as error:
            raise UndefinedValue(str(error.message or "a variable is not defined")) from None
        except RecursionError:
            raise TemplateError("a template is nested too deeply") from None
        except MemoryError:
            raise TemplateError("a template requires too much memory") from None
        except Exception as error:  # a filter got an invalid argument: an error of the playbook, not of this program
            raise TemplateError(_say(error)) from None


@functools.cache
def _make_checker() -> Templar:
    return Templar()


@functools.lru_cache(maxsize=128)
def check_template(text: str, *, expression: bool = False) -> Checked:
    """See `Templar.check`. The gates of a profile repeat the same templates, and each is checked once."""
    return _make_checker().check(text, expression=expression)


def _say(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error)
    if isinstance(error, RecursionError):
        return "a template is nested too deeply"
    if isinstance(error, TemplateSyntaxError):
        return f"template error: {error.message}"
    return f"template error: {str(error) or type(error).__name__}"[:1000]


def _with_line_breaks(template: str, value: Any) -> Any:
    """A text with at least as many line breaks at its end as its template has."""
    if not isinstance(value, str):
        return value
    missing = (len(template) - len(template.rstrip("\n"))) - (len(value) - len(value.rstrip("\n")))
    return value + "\n" * missing if missing > 0 else value


def _look_up(name: str, environment: Mapping[str, str], kind: str, *names: str, default: Any = "") -> Any:
    """`lookup('env', …)`: variables of the environment that every process of the gate has."""
    if kind not in ("env", "ansible.builtin.env"):
        raise TemplateError(f"{name}() {str(kind)[:40]!r} is not supported")
    if wrong := sorted(HOST_VARIABLES.intersection(names) - environment.keys()):
        raise TemplateError(
            f"{name}('env', {wrong[0]!r}) would be the variable of the host; use ansible_facts.env.{wrong[0]}"
        )
    found = [environment.get(one, default) for one in names]
    if name == "lookup":
        return found[0] if len(found) == 1 else ",".join(map(str, found))
    return found


def _find_names(tree: nodes.Template, undeclared: Iterable[str]) -> Names:
    """The variables of a template, and the literal keys of those that are mappings."""
    found: Names = {name: set() for name in undeclared}
    taken: list[Any] = list(tree.find_all((nodes.Getattr, nodes.Getitem)))
    for node in taken:
        if not isinstance(node.node, nodes.Name) or node.node.name not in found:
            continue
        key = (
            node.attr
            if isinstance(node, nodes.Getattr)
            else node.arg.value
            if isinstance(node.arg, nodes.Const)
            else None
        )
        found[node.node.name].add(key if isinstance(key, str) else "")
    for name, keys in found.items():
        if sum(one.name == name for one in tree.find_all(nodes.Name)) > sum(
            getattr(one.node, "name", "") == name for one in taken
        ):
            keys.add("")
    return found
