"""`assert`, `debug`, `fail`, `pause` and `set_fact`, which do not use the guest."""

from __future__ import annotations

import re
from typing import Any

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result

# What the messages of Jinja2 say of a variable, of a key and of an index that is not there.
_UNDEFINED = re.compile(r" is undefined$| has no (attribute|element) ")


def run_assert(call: Call) -> Result:
    that = call.get("that")
    if isinstance(that, str) and that.strip().startswith("{{"):
        # A template may give a list of conditions.
        rendered = call.templar.render(that, call.scope)
        that = rendered if isinstance(rendered, list) else that
        if isinstance(that, list) and any(isinstance(one, str) for one in that):
            raise ModuleFailure("assert: a template gives expressions as text, which are not evaluated")
    conditions = that if isinstance(that, list) else [that]
    for condition in conditions:
        if condition is None:
            raise ModuleFailure("assert: an entry of `that` has no value", evaluated_to=False)
        if not call.templar.condition(condition, call.scope):
            raise ModuleFailure(
                _text(call.get("fail_msg", "Assertion failed")), assertion=condition, evaluated_to=False
            )
    return {"changed": False, "msg": _text(call.get("success_msg", "All assertions passed"))}


def run_debug(call: Call) -> Result:
    if int(call.get("verbosity", 0)) > 0:
        return {"changed": False, "skipped": True, "skipped_reason": "Verbosity threshold not met."}
    name = call.get("var")
    if name is None:
        return {"changed": False, "msg": call.arguments.get("msg", "Hello world!")}
    if not isinstance(name, str):
        return {"changed": False, str(name): name}
    wrapped = name.strip().startswith("{{")
    try:
        text = name if wrapped else f"{{{{ {name} }}}}"
        return {"changed": False, name: call.templar.render(text, call.scope, shown=True)}
    except TemplateError as error:
        if not _UNDEFINED.search(str(error)):
            raise
        return {"changed": False, name: "VARIABLE IS NOT DEFINED!"}


def run_fail(call: Call) -> Result:
    raise ModuleFailure(_text(call.get("msg", "Failed as requested from task")))


def run_pause(call: Call) -> Result:
    seconds = max(0.0, float(call.get("seconds", 0)) + 60 * float(call.get("minutes", 0)))
    if seconds > call.timeout:
        raise ModuleFailure(f"a pause of {seconds:g} s is longer than the task's time limit of {call.timeout:g} s")
    started = call.host.now()
    if not call.check:
        call.host.sleep(seconds)
    return {
        "changed": False,
        "rc": 0,
        "start": started,
        "stop": call.host.now(),
        "delta": int(seconds),
        "stdout": f"Paused for {seconds:g} seconds",
    }


def run_set_fact(call: Call) -> Result:
    facts = {name: value for name, value in call.arguments.items() if name != "cacheable"}
    return {"changed": False, "ansible_facts": facts}


def _text(message: Any) -> Any:
    return message if isinstance(message, (str, list)) else str(message)
