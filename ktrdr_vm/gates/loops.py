"""The items of a loop, their variables, and their names in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ktrdr_vm.errors import keep_beginning
from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.model import Task
from ktrdr_vm.gates.modules.base import Result
from ktrdr_vm.gates.renderer import Renderer
from ktrdr_vm.gates.results import find_message, has_failed, plain_text
from ktrdr_vm.gates.templating import OMIT, Scope

MAX_LOOP = 1000
# Whether a failure is ignored, in the result of an iteration until the task has ended.
IGNORED = "_ignored"
# Characters of the name of an iteration.
_LABEL = 200


class UnknownHandler(TemplateError):
    """A `notify` names no handler."""


def find_items(task: Task, templar: Renderer, scope: Scope) -> list[Any]:
    """The rendered items of a task's loop. TemplateError if there is no list of them."""
    values = templar.render(task.loop, scope)
    if values is OMIT:
        raise TemplateError("the loop is `omit`, and has no items")
    if task.loop_kind == "list" and not isinstance(values, list):
        values = [list(values) if isinstance(values, tuple) else values]
    if task.loop_kind == "dict":
        listed = values if isinstance(values, list) else [values]
        if isinstance(task.loop, list) and len(listed) < len(task.loop):
            raise TemplateError("`with_dict` requires a mapping, and an entry of it is `omit`")
        if wrong := [one for one in listed if not isinstance(one, Mapping)]:
            raise TemplateError(f"`with_dict` requires a mapping, not {type(wrong[0]).__name__}")
        values = [{"key": key, "value": value} for one in listed for key, value in one.items()]
    elif task.loop_kind == "items":
        listed = values if isinstance(values, list) else [values]
        values = [inner for value in listed for inner in (value if isinstance(value, list) else [value])]
    if not isinstance(values, list):
        raise TemplateError(f"`loop` requires a list, not {type(values).__name__}")
    if len(values) > MAX_LOOP:
        raise TemplateError(f"`loop` has {len(values)} items, more than {MAX_LOOP}")
    return values


def make_item(task: Task, number: int, value: Any) -> dict[str, Any]:
    """The variables of one iteration."""
    control = task.loop_control
    found = {control.loop_var: value, "ansible_loop_var": control.loop_var}
    return found | ({control.index_var: number, "ansible_index_var": control.index_var} if control.index_var else {})


def make_label(task: Task, value: Any, templar: Renderer, scope: Scope) -> tuple[str, Result]:
    """The name of an iteration in the report: its `label`, or the item. Without a label that was asked for the
    iteration has failed, as in Ansible: this is in the result, which is otherwise empty."""
    item = keep_beginning(plain_text(value), _LABEL)
    if task.loop_control.label is None:
        return item, {}
    try:
        return keep_beginning(plain_text(templar.render(task.loop_control.label, scope, shown=True)), _LABEL), {}
    except TemplateError as error:
        return item, {"failed": True, "changed": False, "msg": f"`loop_control.label`: {error}"}


def take_ignored(turns: list[tuple[str, Result]]) -> bool | None:
    """Whether all failures of the iterations are ignored; None if that is not known of each. The key is removed."""
    flags = [(has_failed(one), one.pop(IGNORED, None)) for _, one in turns]
    found = [flag for failed, flag in flags if failed]
    return all(found) if found and None not in found else None


def sum_up(turns: list[tuple[str, Result]], *, looped: bool) -> Result:
    """The registered result of the whole task."""
    if not looped or (len(turns) == 1 and turns[0][0] == "" and "ansible_loop_var" not in turns[0][1]):
        return turns[0][1]
    results = [result for _, result in turns]
    if not results:
        return {"changed": False, "skipped": True, "skipped_reason": "No items in the list", "results": []}
    failed = [find_message("", result) for result in results if result.get("failed")]
    summed: Result = {"changed": any(result.get("changed") is True for result in results), "results": results}
    summed["failed"] = bool(failed)
    summed["msg"] = "One or more items failed" if failed else "All items completed"
    if all(result.get("skipped") for result in results):
        summed["skipped"] = True
        summed["msg"] = "All items skipped"
    return summed


def list_notified(rendered: Any) -> list[str]:
    """The names in a `notify`: of one text, or of a list of texts. UnknownHandler for anything else."""
    listed = rendered if isinstance(rendered, list) else [] if rendered is None or rendered is OMIT else [rendered]
    if wrong := [one for one in listed if not isinstance(one, str)]:
        raise UnknownHandler(f"notify: {str(wrong[0])[:200]!r} is not the name of a handler")
    return listed
