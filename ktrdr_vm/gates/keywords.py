"""The values of keywords that tasks inherit from blocks and plays, such as `become`, `timeout` and `environment`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ktrdr_vm.gates.attempt import Settings, truth
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.model import Common, Task
from ktrdr_vm.gates.modules.base import Result
from ktrdr_vm.gates.renderer import Renderer
from ktrdr_vm.gates.results import plain_text
from ktrdr_vm.gates.templating import OMIT, TemplateError
from ktrdr_vm.gates.variables import Variables

Item = Mapping[str, Any]
"""The variables of the current iteration of a loop."""


class Keywords:
    """Evaluates keywords. `commons` are those of the play, of each block around the task, and of the task, in this
    order; the innermost one that is given counts."""

    def __init__(self, templar: Renderer, variables: Variables, context: GateContext) -> None:
        self._templar = templar
        self._variables = variables
        self._context = context
        self._deadline = context.monotonic() + context.gate_timeout

    def find_skip(self, commons: tuple[Common, ...], item: Item, *, quiet: bool = False) -> Result | None:
        """A result if a condition of `when`, the outer ones first, is false or, unless `quiet`, cannot be
        evaluated."""
        scope = self._variables.scope(commons, item)
        for condition in (condition for common in commons for condition in common.when):
            try:
                if not self._templar.condition(condition, scope):
                    reason = {"skip_reason": "Conditional result was False", "false_condition": condition}
                    return {"changed": False, "skipped": True, **reason}
            except TemplateError as error:
                if not quiet:
                    return make_failure(f"when: {error}")
        return None

    def find_settings(self, commons: tuple[Common, ...], item: Item) -> Settings:
        """Environment, user and time limit of a task, which is at most what is left of the gate's. TemplateError for a
        value of the wrong type."""
        scope = self._variables.scope(commons, item)
        environment = dict(self._context.environment)
        for common in commons:
            for layer in common.environment if isinstance(common.environment, list) else [common.environment]:
                rendered = self._templar.render(layer, scope) or {}
                if not isinstance(rendered, dict):
                    raise TemplateError("`environment` must be a mapping")
                # As in Ansible, text that Python writes: `true` in a playbook is `True` for the process.
                environment |= {str(name): str(value) for name, value in rendered.items()}
        limit = self._templar.render(_nearest(commons, "timeout"), scope)
        try:
            wanted = float(limit) if limit else self._context.task_timeout
        except (ValueError, TypeError):
            raise TemplateError(f"`timeout` must be a number of seconds, not {plain_text(limit)[:60]!r}") from None
        left = self._deadline - self._context.monotonic()
        return Settings(environment, self.read_flag(commons, "become", item), min(wanted, left))

    def read_flag(self, commons: tuple[Common, ...], name: str, item: Item) -> bool:
        """A keyword that is true or false; false if it is not given. TemplateError if it cannot be evaluated."""
        written = _nearest(commons, name)
        if written is None:
            return False
        value = self._templar.render(written, self._variables.scope(commons, item))
        return value is not None and value is not OMIT and truth(value)

    def read_flag_or(self, commons: tuple[Common, ...], name: str, item: Item, *, default: bool) -> bool:
        """The same, with a value for one that cannot be evaluated."""
        try:
            return self.read_flag(commons, name, item)
        except TemplateError:
            return default

    def find_name(self, task: Task, commons: tuple[Common, ...], item: Item) -> str:
        """The name of a task, as it is written if it cannot be evaluated."""
        try:
            return plain_text(self._templar.render(task.name, self._variables.scope(commons, item), shown=True))
        except TemplateError:
            return task.name


def make_failure(message: str) -> Result:
    return {"changed": False, "failed": True, "msg": message}


def _nearest(commons: tuple[Common, ...], name: str) -> Any:
    return next((value for common in reversed(commons) if (value := getattr(common, name)) is not None), None)
