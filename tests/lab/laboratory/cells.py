"""The crash matrix: every step of every verb, before, inside and after it. Generated, so that what is new is in it by
itself.

The steps of making and removing are the resources' own methods, taken from the tuple that a profile with everything
makes. The other verbs do more than that in between; there every statement that acts is a step, read from the verb's
source.
"""

from __future__ import annotations

import ast
import functools
import inspect
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any

from ktrdr_vm.approvals import apply as answers
from ktrdr_vm.approvals import loans
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.host import fork
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import allocation, instance, teardown
from ktrdr_vm.instance import branch as branching
from ktrdr_vm.instance import suspend as suspension
from ktrdr_vm.instance.resources import make_resources
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.instance.resources.domain import Domain
from ktrdr_vm.plan.facts import Allocation, Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile

MOMENTS = ("before", "inside", "after")
# By the names of functions: what only looks, or makes a value, is no step. The program's verbs show their effect.
_LOOKS = frozenset(
    "find require open read parse is list exists verify check pick narrow who now replace notify close monotonic isoformat uuid4 to "
    "error append later dict next boottime refuse row path place iterdir".split()
)
_VALUES = frozenset("end_of_life int with_suffix lexists tuple set str sorted reversed items maps resource".split())


@dataclass(frozen=True)
class Step:
    """A method of a class, whole, or the lines of one statement in a function."""

    name: str
    owner: type | None = None
    method: str = ""
    code: CodeType | None = None
    lines: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Cell:
    verb: str
    step: Step
    when: str

    @property
    def key(self) -> str:
        return f"{self.verb}-{self.step.name}-{self.when}"


def find_cells() -> dict[str, Cell]:
    """Every cell by its key, in the order of the verbs."""
    cells = [
        Cell(verb, step, when) for verb, steps in _find_steps().items() for step in steps for when in _moments(step)
    ]
    return {cell.key: cell for cell in cells}


def _moments(step: Step) -> tuple[str, ...]:
    """Before a statement is after the one before it, so only the first of a function has both."""
    return MOMENTS if step.owner is not None or ".0." in step.name else MOMENTS[1:]


def find_classes() -> list[type[Resource]]:
    """The class of each resource that an instance can have, in the order of the tuple."""
    document = {
        "version": 1,
        "name": "all",
        "image": "none",
        "mounts": [{"source": "./shared", "target": "/data"}],
        "secrets": [
            {"name": "given", "source": {"env": "KTRDR_A"}},
            {
                "name": "kept",
                "source": {"env": "KTRDR_B"},
                "broker": {
                    "host": "a.test",
                    "header": "x: {{ secret }}",
                    "base_url_env": "URL",
                    "methods": ["GET"],
                    "paths": ["/"],
                },
            },
        ],
    }
    facts = Facts("tcg", "/bin/false", "q35", "/nonexistent", ImageFacts("none", "0" * 64, "/nonexistent"))
    identity = parse_instance_id("x")
    blueprint = Blueprint(
        Plan(build_profile(document), facts, identity, document), Allocation(), _nobody, lambda _: b""
    )
    with tempfile.TemporaryDirectory() as place:
        target = Target(identity, replace(Home(Path("/nonexistent")).instance("x"), directory=Path(place)), Libvirt())
        target.paths.saved.touch()
        return [type(resource) for resource in make_resources(target, blueprint)]


def _nobody() -> Any:
    raise AssertionError("nothing is asked of a guest here")


def _find_steps() -> dict[str, list[Step]]:
    classes = find_classes()

    def steps(method: str, *kinds: str, but: tuple[str, ...] = ()) -> list[Step]:
        return [
            Step(one.__name__.lower(), one, method)
            for one in classes
            if (not kinds or one.kind in kinds) and one.kind not in but
        ]

    network = [one.kind for one in classes if one.isolates]
    return {
        # What a suspended instance has besides is made by `suspend`.
        "apply": steps("create", but=("saved",))
        + _statements(instance.Instance._open_journal, allocation.create_keys, allocation.publish_keys),
        # Secrets are in the memory of the domain and of the guard, and go with them.
        "destroy": steps("remove", but=("secret",)) + _statements(teardown.tear_down, teardown._remove_directory),
        "fork": _statements(Domain.create, fork.load_state),
        "suspend": [
            *steps("remove", "secret"),
            *steps("detach", "mount"),
            *steps("create", "saved"),
            *steps("remove", *network),
            *_statements(suspension.suspend, suspension._release),
        ],
        "resume": [
            *steps("create", *network, "mount", "secret"),
            *steps("remove", "saved"),
            *_statements(suspension.resume),
        ],
        "branch": _statements(branching._copy, branching._pause, fork.copy_state, branching._create),
        # The command that gives dies; then the guard that takes it up.
        "grant": _statements(answers.approve, answers._apply, EscalationStore.answer, EscalationStore._settle),
        "loan": _statements(loans.add_loan, loans.remove_loan),
        "granting": _statements(Granting.grant, Granting._apply, Granting._end),
    }


def _statements(*functions: Callable[..., Any]) -> list[Step]:
    """The statements of these functions that act and that are always come to: not those on the way to an error or an
    early end."""
    found = []
    for function in functions:
        code = function.__code__
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        for number, (statement, called) in enumerate(_walk(tree.body)):
            offset = code.co_firstlineno - 1
            lines = (statement.lineno + offset, (statement.end_lineno or statement.lineno) + offset)
            if isinstance(statement, ast.For):
                lines = (lines[0], lines[0])
            found.append(Step(f"{function.__name__.strip('_')}.{number}.{called}", code=code, lines=lines))
    return found


def _walk(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.Raise):
            continue
        if isinstance(statement, ast.If):
            # What ends here is another way through; an `else` is one as well.
            if not isinstance(statement.body[-1], ast.Return | ast.Raise | ast.Continue):
                yield from _walk(statement.body)
            continue
        if isinstance(statement, ast.For):
            called = _acts(statement.iter)
            if called:
                yield statement, called
            yield from _walk(statement.body)
        elif isinstance(statement, ast.With | ast.Try | ast.While):
            yield from _walk(statement.body)
            yield from _walk(getattr(statement, "finalbody", []))
        else:
            called = _acts(statement)
            if called:
                yield statement, called


def _acts(node: ast.AST) -> str:
    """The name of the first function in it that does something, or nothing."""
    for call in (found for found in ast.walk(node) if isinstance(found, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        name = name.strip("_")
        if name and not name[0].isupper() and name not in _VALUES and name.partition("_")[0] not in _LOOKS:
            return str(name)
    return ""


@functools.cache
def all_cells() -> dict[str, Cell]:
    return find_cells()
