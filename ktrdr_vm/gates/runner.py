"""Runs a playbook in a guest: order, blocks, loops, conditions, variables. `attempt` and `modules` run the tasks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ktrdr_vm.errors import GuestError
from ktrdr_vm.gates.attempt import Attempt
from ktrdr_vm.gates.container_logs import Evidence, Failure, gather_containers
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.handlers import Handlers
from ktrdr_vm.gates.keywords import Keywords, make_failure
from ktrdr_vm.gates.loops import (
    IGNORED,
    UnknownHandler,
    find_items,
    list_notified,
    make_item,
    make_label,
    sum_up,
    take_ignored,
)
from ktrdr_vm.gates.model import Block, Common, Node, Play, Playbook, Task
from ktrdr_vm.gates.modules.base import Result
from ktrdr_vm.gates.renderer import IsolatedRenderer, Renderer
from ktrdr_vm.gates.results import add_hints, find_outcome, has_failed, hide_result, make_task_result, plain_text
from ktrdr_vm.gates.selection import is_selected
from ktrdr_vm.gates.templating import TemplateError
from ktrdr_vm.gates.variables import Variables, find_role
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.report.model import GateOutcome, GateResult, TaskOutcome, TaskResult

__all__ = ["GateContext", "run_playbook"]

MAX_RESULTS = 5000


def run_playbook(playbook: Playbook, guest: Guest, context: GateContext) -> GateResult:
    """Run all plays. A failed task is a result; a lost guest makes the outcome `error`. Only `proceed` raises."""
    with IsolatedRenderer() as renderer:
        return _run(playbook, _Run(playbook, guest, context, context.renderer or renderer), context)


def _run(playbook: Playbook, run: _Run, context: GateContext) -> GateResult:
    started_at, clock = context.now(), context.monotonic()
    run.tell("gate_started")
    outcome: GateOutcome = "passed"
    message = ""
    try:
        for play in playbook.plays:
            failed = run.play(play)
            if failed is not None:
                outcome, message = "failed", f"{failed.name}: {failed.message}"
                break
        else:
            if context.start_at_task and not run.started:
                outcome, message = "error", f"no task is named {context.start_at_task!r}"
    except GuestError as error:
        outcome, message = "error", context.mask(f"{error.message} ({error.hint})")
    duration = round(context.monotonic() - clock, 3)
    run.tell("gate_finished", outcome=outcome, duration_s=duration, message=message)
    return GateResult(playbook.name, outcome, started_at, duration, tuple(run.results), message)


@dataclass
class _Failure:
    """The task that ended a list of tasks, and its registered result."""

    name: str
    message: str
    index: int
    result: Result


class _Run:
    """The state of one gate: facts so far, results so far."""

    def __init__(self, playbook: Playbook, guest: Guest, context: GateContext, renderer: Renderer) -> None:
        self.results: list[TaskResult] = []
        self.started = not context.start_at_task
        self._playbook = playbook
        self._guest = guest
        self._context = context
        self._templar = renderer
        self._variables = Variables(playbook, context)
        self._keywords = Keywords(renderer, self._variables, context)
        self._handlers = Handlers()
        self._about_containers = False

    def tell(self, event: str, **more: Any) -> None:
        mask = self._context.mask
        told = {key: mask(value) if isinstance(value, str) else value for key, value in more.items()}
        self._context.on_event({"event": event, "gate": self._playbook.name, **told})

    def play(self, play: Play) -> _Failure | None:
        """Run the tasks of a play. Handlers that were notified before a failure do not run."""
        self._handlers = Handlers(play.handlers)
        return self.nodes(play.tasks, (play.common,), {})

    def nodes(self, nodes: Sequence[Node], outer: tuple[Common, ...], item: Mapping[str, Any]) -> _Failure | None:
        """Run in order up to the first failure; later tasks are listed as not run."""
        for number, node in enumerate(nodes):
            failed = self._block(node, outer, item) if isinstance(node, Block) else self._task(node, outer, item)
            if failed is not None:
                for task in _tasks(nodes[number + 1 :]):
                    self._note_unreached(task, outer, failed)
                return failed
        return None

    def _block(self, block: Block, outer: tuple[Common, ...], item: Mapping[str, Any]) -> _Failure | None:
        inner = (*outer, block.common)
        failed = self.nodes(block.block, inner, item)
        if failed is not None and block.rescue:
            self.results[failed.index] = replace(self.results[failed.index], outcome="rescued")
            self._variables.results["ansible_failed_task"] = {"name": failed.name}
            self._variables.results["ansible_failed_result"] = failed.result
            failed = self.nodes(block.rescue, inner, item)
        # The first failure is the reason of the gate, but `always` runs, and a failure in it counts too.
        in_always = self.nodes(block.always, inner, item)
        return failed or in_always

    def _task(self, task: Task, outer: tuple[Common, ...], item: Mapping[str, Any]) -> _Failure | None:
        commons = (*outer, task.common)
        if not task.has_row:
            return self._meta(task, commons, outer)
        if not self._is_selected(task, commons):
            return None
        context = self._context
        name = self._keywords.find_name(task, commons, item)
        started_at, clock = context.now(), context.monotonic()
        self.tell("task_started", task=name, module=task.module, where=task.where, time=started_at)
        self._about_containers = self._about_containers or _names_docker(task)
        before = dict(self._variables.results)
        turns, inner_failure = self._turns(task, commons, item)
        ignored = take_ignored(turns)
        result = sum_up(turns, looped=task.loop is not None)
        failed = has_failed(result)
        if failed and task.module == "set_fact":
            # As in Ansible, a task that failed has set nothing, none of its items.
            self._variables.results = before
        try:
            if task.notify and result.get("changed") and not failed:
                self._notify(task, commons, item, turns)
        except TemplateError as error:
            # As in Ansible, nothing ignores a name that no handler has.
            failed, ignored = True, False if isinstance(error, UnknownHandler) else None
            result |= {"failed": True, "msg": str(error)}
            turns = [("", result)]
        ignored = (
            self._keywords.read_flag_or(commons, "ignore_errors", item, default=False)
            if ignored is None and failed
            else bool(ignored)
        )
        if task.register:
            self._variables.results[task.register] = result
        if inner_failure is None:
            context.on_result(name, result)
        outcome = find_outcome(result, failed=failed, ignored=ignored)
        if self._keywords.read_flag_or(commons, "no_log", item, default=True):
            turns = [(label and f"item {number}", hide_result(one)) for number, (label, one) in enumerate(turns, 1)]
        asks = failed and self._about_containers and not task.is_include
        evidence, hints = self._evidence(task, commons, item, turns) if asks else ((), ())
        made = make_task_result(
            task,
            name,
            turns,
            outcome=outcome,
            started_at=started_at,
            duration_s=context.monotonic() - clock,
            mask=context.mask,
            evidence=evidence,
        )
        made = add_hints(made, hints, context.mask)
        self.tell(
            "task_finished",
            task=name,
            module=task.module,
            outcome=made.outcome,
            changed=made.changed,
            duration_s=made.duration_s,
            message=made.message,
        )
        if inner_failure is not None:
            return inner_failure
        if not task.is_include or outcome in ("failed", "skipped", "ignored"):
            self._keep(made)
        if outcome == "failed":
            return _Failure(made.name, made.message, len(self.results) - 1, result)
        return None

    def _turns(
        self, task: Task, commons: tuple[Common, ...], item: Mapping[str, Any]
    ) -> tuple[list[tuple[str, Result]], _Failure | None]:
        """The result of each iteration; a single one without a label if there is no loop."""
        if task.loop is None:
            result, failed = self._turn(task, commons, item)
            return [("", result)], failed
        scope = self._variables.scope(commons, item)
        try:
            values = find_items(task, self._templar, scope)
            pause = float(self._templar.render(task.loop_control.pause, scope) or 0)
        except (TemplateError, ValueError, TypeError) as error:
            skipped = self._keywords.find_skip(commons, item, quiet=True)
            return [("", skipped or make_failure(str(error)))], None
        turns = []
        for number, value in enumerate(values):
            if number and pause:
                self._context.wait(pause)
            inner = {**item, **make_item(task, number, value)}
            result, failed = self._turn(task, commons, inner)
            label, wrong = make_label(task, value, self._templar, self._variables.scope(commons, inner))
            turns.append((label, {**result, **wrong, **make_item(task, number, value)}))
            if failed is not None:
                return turns, failed
        return turns, None

    def _meta(self, task: Task, commons: tuple[Common, ...], outer: tuple[Common, ...]) -> _Failure | None:
        """`meta`: run the notified handlers."""
        if task.arguments.get("free_form") != "flush_handlers":
            return None
        if skipped := self._keywords.find_skip(commons, {}):
            if not skipped.get("failed"):
                return None
            # As in Ansible, nothing ignores this.
            self._note_at_once(task, task.name, skipped, "failed")
            return _Failure(task.name, self.results[-1].message, len(self.results) - 1, skipped)
        for handler in self._handlers.take_notified():
            if failed := self._task(handler, outer[:1], {}):
                return failed
        return None

    def _notify(
        self, task: Task, commons: tuple[Common, ...], item: Mapping[str, Any], turns: list[tuple[str, Result]]
    ) -> None:
        """Notify the handlers of a task that changed something. TemplateError for a name that no handler has."""
        for number, (_, result) in enumerate(turns):
            if result.get("skipped"):
                continue
            inner = make_item(task, number, result[task.loop_control.loop_var]) if task.loop is not None else {}
            scope = self._variables.scope(commons, {**item, **inner})
            written = list(task.notify) if task.notifies_names else task.notify[0]
            self._handlers.notify(list_notified(self._templar.render(written, scope)))

    def _turn(self, task: Task, commons: tuple[Common, ...], item: Mapping[str, Any]) -> tuple[Result, _Failure | None]:
        skipped = self._keywords.find_skip(commons, item)
        if skipped is not None:
            return skipped, None
        if task.is_include:
            failed = self.nodes(task.included, (*commons[:-1], Common(params=task.common.vars)), item)
            return {"changed": False, "include": task.arguments.get("file", task.arguments.get("name"))}, failed
        # As in Ansible, keywords are read before the module runs, and without a valid one it does not run.
        try:
            told = {IGNORED: self._keywords.read_flag(commons, "ignore_errors", item)}
        except TemplateError as error:
            # Ansible ignores the failure then.
            return {**make_failure(f"`ignore_errors`: {error}"), IGNORED: False}, None
        try:
            self._keywords.read_flag(commons, "no_log", item)
            settings = self._keywords.find_settings(commons, item)
        except TemplateError as error:
            return {**make_failure(str(error)), **told}, None
        if settings.timeout <= 0:
            late = f"the gate exceeded its time limit of {self._context.gate_timeout:g} s"
            return {**make_failure(late), **told}, None
        attempt = Attempt(
            task,
            self._guest,
            self._context,
            self._templar,
            lambda extra: self._variables.scope(commons, {**item, **extra}),
            find_role(commons),
            self._playbook.files,
        )
        result = attempt.run(settings)
        facts = result.get("ansible_facts")
        if task.module == "set_fact" and isinstance(facts, dict):
            self._variables.results.update(facts)
        elif task.module == "setup" and isinstance(facts, dict):
            self._variables.add_facts(facts)
        return {**result, **told}, None

    def _is_selected(self, task: Task, commons: tuple[Common, ...]) -> bool:
        if not self.started:
            wanted = self._context.start_at_task
            if task.is_include:
                return True
            if task.name != wanted and not fnmatch.fnmatchcase(task.name, wanted):
                return False
            self.started = True
        tags = {tag for common in commons for tag in common.tags}
        return is_selected(tags, set(self._context.tags), set(self._context.skip_tags))

    def _evidence(
        self, task: Task, commons: tuple[Common, ...], item: Mapping[str, Any], turns: list[tuple[str, Result]]
    ) -> tuple[Evidence, tuple[str, ...]]:
        said = "\n".join(plain_text(result.get(key)) for _, result in turns for key in ("msg", "stderr", "stdout"))
        try:
            settings = self._keywords.find_settings(commons, item)
            folder = task.arguments.get("chdir") or task.arguments.get("project_src") or ""
            failure = Failure(said, plain_text(self._templar.render(folder, self._variables.scope(commons, item))))
        except TemplateError:
            return (), ()
        return gather_containers(self._guest, failure, environment=settings.environment, become=settings.become)

    def _keep(self, result: TaskResult) -> None:
        if len(self.results) >= MAX_RESULTS:
            raise GuestError(
                f"the gate has more than {MAX_RESULTS} results",
                where=self._playbook.source,
                hint="loop over fewer items",
            )
        self.results.append(result)

    def _note_unreached(self, task: Task, outer: tuple[Common, ...], failed: _Failure) -> None:
        if not self._is_selected(task, (*outer, task.common)):
            return
        reason = {"changed": False, "skipped": True, "msg": f"not run, because {failed.name!r} failed"}
        self._note_at_once(task, self._keywords.find_name(task, (*outer, task.common), {}), reason, "skipped")

    def _note_at_once(self, task: Task, name: str, result: Result, outcome: TaskOutcome) -> None:
        now, mask = self._context.now(), self._context.mask
        turns = [("", result)]
        self._keep(make_task_result(task, name, turns, outcome=outcome, started_at=now, duration_s=0.0, mask=mask))


def _tasks(nodes: Sequence[Node]) -> Iterator[Task]:
    for node in nodes:
        if isinstance(node, Task):
            if node.has_row:
                yield node
        else:
            yield from _tasks(node.block)


def _names_docker(task: Task) -> bool:
    return task.module == "docker_compose_v2" or "docker" in plain_text(dict(task.arguments))
