"""One task, or one iteration of its loop: render the options, call the module, retry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ktrdr_vm.gates.arguments import coerce
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.model import Task
from ktrdr_vm.gates.modules.base import Call, Host, ModuleFailure, Result
from ktrdr_vm.gates.modules.table import RUN
from ktrdr_vm.gates.option_checks import Options, check_options
from ktrdr_vm.gates.renderer import Renderer
from ktrdr_vm.gates.templating import OMIT, Scope, TemplateError
from ktrdr_vm.guest.protocol import Guest, GuestRefusedError, GuestTimeout

# In a result that `failed_when` and the other conditions do not judge; never kept.
_UNJUDGED = "_unjudged"
# Options that are only shown to a person.
_SHOWN = {"debug": ("msg",), "fail": ("msg",), "assert": ("fail_msg", "success_msg"), "wait_for": ("msg",)}


@dataclass(frozen=True)
class Settings:
    """The rendered settings that a task inherits from its blocks and its play."""

    environment: Mapping[str, str]
    become: bool
    timeout: float


@dataclass(frozen=True)
class Attempt:
    """Runs a module for one task. `scope_with` returns the current variables, with some results in addition."""

    task: Task
    guest: Guest
    context: GateContext
    templar: Renderer
    scope_with: Callable[[Mapping[str, Any]], Scope]
    role: str = ""
    """The role of the task, whose files are searched first."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Those of the playbook as it was loaded."""

    def run(self, settings: Settings) -> Result:
        """Try until `until` is true or, without it, until it does not fail; `retries` limits the attempts."""
        task = self.task
        result: Result = {}
        try:
            retries = self._number("retries", task.retries, 3 if task.until else 0)
            if not retries.is_integer():
                raise TemplateError(f"`retries` must be a whole number, not {retries:g}")
            delay = self._number("delay", task.delay, 5.0)
        except TemplateError as error:
            return {"changed": False, "failed": True, "msg": str(error)}
        tries = 1 + max(0, int(retries))
        for attempt in range(1, tries + 1):
            if self.context.proceed is not None:
                self.context.proceed()
            result = self._once(settings)
            if result.get("timedout"):
                return result
            if tries > 1:
                result["attempts"] = attempt
            if result.pop(_UNJUDGED, False):
                return result
            self._judge(result)
            if tries == 1 or self._is_done(result):
                return result
            if attempt < tries:
                self.context.on_event({"event": "task_retried", "task": task.name, "attempt": attempt, "of": tries})
                self.context.wait(delay)
        result |= {"attempts": tries - 1, "failed": True}
        if task.until:
            result["until_failed"] = list(task.until) if len(task.until) > 1 else task.until[0]
        return result

    def _once(self, settings: Settings) -> Result:
        try:
            call = self._call(settings)
            result = RUN[self.task.module](call)
        except ModuleFailure as failure:
            result = failure.result
        except TemplateError as error:
            # As in Ansible, `failed_when` does not judge a task that could not begin.
            result = {"changed": False, "failed": True, "msg": str(error), _UNJUDGED: True}
        except GuestTimeout as error:
            said = f"the task exceeded its time limit of {settings.timeout:g} s: {error.message}"
            result = {"changed": False, "failed": True, "timedout": {"period": settings.timeout}, "msg": said}
        except GuestRefusedError as error:
            result = {"changed": False, "failed": True, "msg": error.message}
        result.setdefault("changed", False)
        result["failed"] = bool(result.get("failed", False))
        return result

    def _call(self, settings: Settings) -> Call:
        task, context = self.task, self.context
        scope = self.scope_with({})
        raw = {"assert": "that", "debug": "var"}.get(task.module)
        arguments: dict[str, Any] = {}
        for name, value in task.arguments.items():
            shown = name in _SHOWN.get(task.module, ())
            rendered = value if name == raw else self.templar.render(value, scope, shown=shown)
            if rendered is OMIT:
                continue
            arguments[name], wrong = coerce(task.module, name, rendered, rendered=True)
            if wrong:
                raise ModuleFailure(wrong)
        given = {name: value for name, value in arguments.items() if value is not None}
        if problems := check_options(task.module, Options(given, frozenset(given))):
            raise ModuleFailure("; ".join(problems))
        host = Host(
            roots=context.roots,
            artifacts=context.artifacts,
            now=context.now,
            monotonic=context.monotonic,
            sleep=context.wait,
            role=self.role,
            files=self.files,
            fetched=context.fetched,
        )
        return Call(
            module=task.module,
            arguments=arguments,
            guest=self.guest,
            host=host,
            environment=settings.environment,
            become=settings.become,
            timeout=settings.timeout,
            check=context.check,
            registered=bool(task.register),
            templar=self.templar,
            scope=scope,
        )

    def _judge(self, result: Result) -> None:
        """Apply `changed_when` and `failed_when` to the result of the module."""
        task = self.task
        if result.get("skipped"):
            return
        try:
            if task.changed_when is not None:
                result["changed"] = self._all(task.changed_when, result)
            if task.failed_when is not None:
                result["failed"] = result["failed_when_result"] = self._all(task.failed_when, result)
        except TemplateError as error:
            result |= {"failed": True, "msg": str(error)}

    def _is_done(self, result: Result) -> bool:
        if self.task.until is None:
            return not result["failed"]
        try:
            return self._all(self.task.until, result)
        except TemplateError as error:
            # As in Ansible, nothing of the result is left.
            result.clear()
            result |= {"changed": False, "failed": True, "msg": f"`until`: {error}"}
            return True

    def _all(self, conditions: tuple[Any, ...], result: Result) -> bool:
        # As in Ansible, the conditions of `set_fact` see what it sets.
        facts = result.get("ansible_facts") if self.task.module == "set_fact" else None
        scope = self.scope_with({**(facts or {}), **({self.task.register: result} if self.task.register else {})})
        return all(self.templar.condition(condition, scope) for condition in conditions)

    def _number(self, name: str, value: Any, default: float) -> float:
        """The value of a keyword. TemplateError if it is not a number, since a task without its retries decides from
        less than its author wrote."""
        if value is None:
            return float(default)
        try:
            found = self.templar.render(value, self.scope_with({}))
        except TemplateError as error:
            raise TemplateError(f"`{name}`: {error}") from None
        try:
            number = float(found)
        except (ValueError, TypeError):
            number = math.inf
        if not math.isfinite(number):
            raise TemplateError(f"`{name}` must be a number, not {str(found)[:60]!r}")
        return number


def truth(value: Any) -> bool:
    """The boolean value of a keyword, after rendering."""
    parsed = parse_bool(value)
    if parsed is None:
        raise TemplateError(f"{str(value)[:60]!r} is neither true nor false")
    return parsed
