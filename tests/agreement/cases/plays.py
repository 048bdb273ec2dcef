"""Cases of plays: handlers, roles, and what a task leaves to those after it. Each is one play of a playbook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any


@dataclass(frozen=True)
class PlayCase:
    """One play. `files` are written beside the playbook, by their names; no two cases write one file differently."""

    title: str
    play: Mapping[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)


_HANDLERS = [
    {"name": "one", "debug": {"msg": "1"}},
    {"name": "two", "listen": "topic", "command": "true", "notify": "one"},
    {"name": "three", "listen": ["topic", "x, y"], "command": "true", "notify": ["four", "one"]},
    {"name": "four", "debug": {"msg": "4"}, "when": "1 == 1"},
    {"name": "five", "listen": "five", "debug": {"msg": "5"}},
]
_NOTIFY: tuple[Any, ...] = (
    "one", ["one"], ["four", "one"], "topic", ["topic", "topic"], "x, y", "one, four", "x", [], "", None, "{{ 'one' }}", "{{ names }}", ["{{ names }}"],
    ["{{ names }}", "five"], "{{ nothing }}", ["{{ nothing }}", "one"], "{{ none }}", "{{ omit }}", ["{{ omit }}", "one"], "{{ missing }}", "{{ missing | default('one') }}",
    "{{ 'o' ~ 'ne' }}", "{{ 'nope' }}", "{{ names | first }}", "{{ names | join(',') }}", "{{ [names] }}", "{{ {'one': 1} }}", 1, "{{ 1 }}", True, "{{ True }}", ["one", None], {"one": 1},
    ["one", ["four"]], " one", "{{ names if 1 == 2 else [] }}", "{{ (1 == 1) | ternary('one', 'four') }}", "{{ r }}", "five", "One", "{% if true %}one{% endif %}",
)  # fmt: skip
_FLAGS: tuple[Any, ...] = (
    True, False, None, "yes", "no", "on", "", "maybe", 0, 1, 2, [], [True], {"a": 1}, "{{ true }}", "{{ 'no' }}", "{{ 'maybe' }}", "{{ missing }}", "{{ 1 }}", "{{ 0 }}", "{{ 7 }}",
    "{{ [] }}", "{{ none }}", "{{ omit }}", "{{ '' }}", "{{ missing | default(true) }}", "1 == 1", "{{ item is defined }}", "{{ r is defined }}", "{{ r is failed }}",
)  # fmt: skip
# Ansible ignores a failure if `ignore_errors` has one of these values; here it counts, and its message says why.
_INVALID = ("{{ 'maybe' }}", "{{ missing }}", "{{ 7 }}", "{{ [] }}", "{{ '' }}")


def make_play_cases() -> Iterator[PlayCase]:
    yield from _make_notified()
    yield from _make_orders()
    yield from _make_ignored()
    yield from _make_facts()
    yield from _make_roles()
    yield from _make_keywords()


def _tasks(*tasks: Mapping[str, Any], **keywords: Any) -> dict[str, Any]:
    return {"tasks": list(tasks), **keywords}


def _make_notified() -> Iterator[PlayCase]:
    more: dict[str, Any]
    names = {"names": ["four", "one"], "nothing": []}
    for value in _NOTIFY:
        task = {"name": "t", "command": "true", "notify": value}
        yield PlayCase(f"notify {value!r}", _tasks(task, handlers=_HANDLERS, vars=names))
    for value in ("{{ item }}", ["{{ item }}", "five"], "{{ 'one' if item == 'one' else 'five' }}", "{{ omit if item == 'one' else item }}"):  # fmt: skip
        for more in (
            {},
            {"changed_when": "item == 'four'"},
            {"when": "item == 'one'"},
            {"failed_when": "item == 'one'"},
        ):
            task = {"name": "t", "command": "true", "notify": value, "loop": ["one", "four"], **more}
            yield PlayCase(f"notify of a loop {value!r} {more}", _tasks(task, handlers=_HANDLERS))
    control = {"loop_var": "n", "index_var": "i"}
    task = {"name": "t", "command": "true", "notify": "{{ n if i else 'five' }}", "loop": ["one", "four"], "loop_control": control}  # fmt: skip
    yield PlayCase("notify by other loop variables", _tasks(task, handlers=_HANDLERS))
    for more in (
        {"changed_when": False}, {"changed_when": "missing"}, {"failed_when": True}, {"ignore_errors": True, "failed_when": True}, {"when": False}, {"register": "r", "notify": "{{ r.rc == 0 }}"},
        {"vars": {"w": "one"}, "notify": "{{ w }}"}, {"until": "1 == 2", "retries": 1, "delay": 0, "failed_when": False}, {"until": "1 == 2", "retries": 1, "delay": 0}, {"check_mode": True},
        {"no_log": True}, {"run_once": True},
    ):  # fmt: skip
        task = {"name": "t", "command": "true", "notify": "one", **more}
        yield PlayCase(f"notify with {more}", _tasks(task, {"name": "u", "debug": {}}, handlers=_HANDLERS))


def _make_orders() -> Iterator[PlayCase]:
    more: dict[str, Any]
    flush = {"meta": "flush_handlers"}
    last = {"name": "last", "debug": {}}
    for notified in ("one", "two", "three", ["five", "two"], "topic"):
        task = {"name": "t", "command": "true", "notify": notified}
        yield PlayCase(f"flushed after {notified}", _tasks(task, flush, last, handlers=_HANDLERS))
        yield PlayCase(f"flushed twice after {notified}", _tasks(task, flush, flush, last, handlers=_HANDLERS))
        yield PlayCase(f"pre_tasks notify {notified}", {"pre_tasks": [task], "tasks": [last], "handlers": _HANDLERS})
        yield PlayCase(f"post_tasks notify {notified}", {"tasks": [last], "post_tasks": [task], "handlers": _HANDLERS})
        block = {"name": "b", "block": [task, {"name": "bad", "command": "false", "ignore_errors": False}], "rescue": [last]}  # fmt: skip
        yield PlayCase(f"a rescued block notifies {notified}", _tasks(block, flush, last, handlers=_HANDLERS))
    task = {"name": "t", "command": "true", "notify": ["one", "four"]}
    for more in ({"when": False}, {"when": "missing"}, {"vars": {"a": 1}, "when": "a == 1"}, {"ignore_errors": True, "failed_when": True}, {"failed_when": True, "ignore_errors": False},
                 {"loop": [1, 2]}, {"register": "r"}, {"listen": []}, {"listen": "{{ 'four' }}"}, {"listen": 5}, {"listen": None}, {"tags": "x"}, {"become": False},
                 {"changed_when": True, "notify": "one"}, {"until": "r is changed", "register": "r", "retries": 1, "delay": 0}):  # fmt: skip
        handlers = [{"name": "one", "debug": {}, **more}, {"name": "four", "debug": {}}]
        yield PlayCase(f"a handler with {more}", _tasks(task, last, handlers=handlers))
    for condition in (True, False, "1 == 2", "missing", "{{ true }}", None):
        yield PlayCase(f"flush_handlers when {condition!r}", _tasks(task, {**flush, "when": condition}, last, handlers=_HANDLERS))  # fmt: skip


def _make_ignored() -> Iterator[PlayCase]:
    after = {"name": "after", "debug": {}}
    for value, command in product(_FLAGS, ("true", "false")):
        if value in _INVALID:
            continue
        task = {"name": "t", "command": command, "ignore_errors": value, "register": "r"}
        yield PlayCase(f"ignore_errors {value!r} of {command}", _tasks(task, after, ignore_errors=False))
    for value in (True, "{{ item == 1 }}", "{{ item == 2 }}", "{{ item in [1, 2] }}"):
        task = {"name": "t", "command": "test {{ item }} -eq 2", "loop": [1, 2], "ignore_errors": value}
        yield PlayCase(f"ignore_errors {value!r} of a loop", _tasks(task, after, ignore_errors=False))
    for value in ("{{ 1 == 2 }}", "maybe", "{{ true }}"):
        block = {"name": "b", "ignore_errors": value, "block": [{"name": "t", "command": "false"}], "rescue": [after]}
        yield PlayCase(f"ignore_errors {value!r} of a block", _tasks(block, ignore_errors=False))
    for value in _FLAGS:
        for key in ("no_log", "become", "run_once"):
            value = False if key == "become" and value in (True, "yes", "on", 1) else value
            yield PlayCase(f"{key} {value!r}", _tasks({"name": "t", "command": "true", key: value}, after))
    for value in (60, "60", 0, None, "", "soon", 1.5, "{{ 60 }}", "{{ 'x' }}", -1, True, [1]):
        yield PlayCase(f"timeout {value!r}", _tasks({"name": "t", "command": "true", "timeout": value}, after))
    for key in ("throttle", "any_errors_fatal"):
        yield PlayCase(key, _tasks({"name": "t", "command": "true", key: 1}, after))


def _make_facts() -> Iterator[PlayCase]:
    more: dict[str, Any]
    show = {
        "name": "shown",
        "debug": {"msg": "{{ [fa | default('-'), fb | default('-'), r | default({}) is failed] }}"},
    }
    begin = {"name": "begin", "set_fact": {"fa": "old", "fb": "-"}}
    for more in (
        {}, {"failed_when": True}, {"failed_when": "fa == 'new'"}, {"failed_when": "fa == 'old'"}, {"changed_when": True}, {"failed_when": "missing"}, {"changed_when": "missing"},
        {"loop": [1, 2]}, {"loop": [1, 2], "failed_when": "item == 2"}, {"loop": [1, 2], "failed_when": "item == 1"}, {"loop": [1, 2], "when": "item == 1"}, {"loop": []},
        {"loop": [1, 2], "changed_when": "missing"}, {"until": "fa == 'new'", "retries": 1, "delay": 0}, {"until": "1 == 2", "retries": 1, "delay": 0},
        {"until": "1 == 2", "retries": 1, "delay": 0, "failed_when": False}, {"until": "1 == 2", "retries": 1, "delay": 0, "failed_when": True}, {"when": "missing"}, {"when": False},
        {"vars": {"fa": "of the task"}}, {"no_log": True}, {"run_once": True},
    ):  # fmt: skip
        for facts in (
            {"fa": "new"},
            {"fa": "{{ item | default('none') }}", "fb": "{{ fa }}"},
            {"fa": "{{ missing }}", "fb": 1},
        ):
            task = {"name": "t", "set_fact": facts, "register": "r", **more}
            yield PlayCase(f"set_fact {facts} {more}", _tasks(begin, task, show))


def _make_roles() -> Iterator[PlayCase]:
    def role(name: str, **more: Any) -> dict[str, Any]:
        tasks = [{"name": f"of {name}", "command": "true", "notify": [f"handler of {name}", "both"]}]
        handlers = [{"name": f"handler of {name}", "debug": {}}, {"name": "both", "debug": {"msg": name}}]
        parts = {"tasks/main.yml": tasks, "handlers/main.yml": handlers, "defaults/main.yml": {"level": 1}, **more}
        return {f"roles/{name}/{part}": data for part, data in parts.items()}

    files = {**role("ra"), **role("rb"), **role("rd", **{"meta/main.yml": {"allow_duplicates": True}})}
    handlers = [{"name": "both", "debug": {"msg": "play"}}, {"name": "own", "debug": {"msg": "own"}}]
    task = {"name": "t", "command": "true", "notify": "own"}
    for roles in (
        ["ra"], ["ra", "rb"], ["rb", "ra"], ["rd", "rd"], ["ra", "ra"], ["ra", {"role": "ra"}], ["ra", {"role": "ra", "vars": {"level": 2}}], [{"role": "ra", "tags": "x"}, "ra"],
        ["ra", {"role": "ra", "when": "1 == 1"}], [{"role": "ra", "when": "1 == 2"}, "ra"], [{"role": "ra", "when": False}, {"role": "ra", "when": False}], [{"name": "ra"}, "rb", "ra"],
        [{"role": "ra", "become": False}, "ra"], [{"role": "ra", "environment": {"A": 1}}, "ra"], [{"role": "ra", "level": 2}, "ra"], ["ra", {"role": "ra", "ignore_errors": True}],
        ["rd", {"role": "rd", "when": False}], [], None, "ra", [None], [{"role": "ra", "vars": None}], [{"role": "ra", "vars": {"level": 2}}, {"role": "ra", "vars": {"level": 2}}],
    ):  # fmt: skip
        yield PlayCase(f"roles {roles}", _tasks({**task, "notify": []}, roles=roles), files)
        yield PlayCase(f"roles {roles} and handlers", _tasks(task, roles=roles, handlers=handlers), files)
    for module in ("include_role", "import_role"):
        for more in ({}, {"when": False}, {"vars": {"level": 2}}, {"loop": [1, 2]}, {"tags": "x"}):
            called = {"name": "c", module: {"name": "ra"}, **more}
            yield PlayCase(f"{called} after roles", _tasks(called, task, roles=["ra"], handlers=handlers), files)
            yield PlayCase(f"{called} twice", _tasks(called, called, handlers=handlers), files)


def _make_keywords() -> Iterator[PlayCase]:
    keyword: dict[str, Any]
    task, after = {"name": "t", "command": "true"}, {"name": "after", "debug": {}}
    for keyword in (
        {"serial": 1}, {"any_errors_fatal": True}, {"max_fail_percentage": 0}, {"strategy": "free"}, {"order": "sorted"}, {"force_handlers": True}, {"gather_subset": "min"},
        {"become_user": "root"}, {"environment": {"A": 1}}, {"environment": None}, {"environment": "x"}, {"vars": None}, {"vars": []}, {"vars": [{"a": 1}]}, {"vars_files": None},
        {"tags": None}, {"tags": "a,b"}, {"tags": ["a", 1]}, {"tags": 5}, {"handlers": None}, {"roles": None}, {"pre_tasks": None}, {"name": None}, {"name": ""}, {"name": 5}, {"no_log": "no"},
        {"hosts": ["all"]}, {"hosts": "localhost"}, {"gather_facts": "no"}, {"gather_facts": 0}, {"become": "no"}, {"run_once": True}, {"timeout": 10}, {"debugger": "never"},
    ):  # fmt: skip
        yield PlayCase(f"play with {keyword}", _tasks(task, after, **keyword))
    for keyword in (
        {"async": 10, "poll": 0}, {"poll": 1}, {"become_user": "root"}, {"become_method": "sudo"}, {"throttle": 1}, {"delegate_to": "localhost"}, {"check_mode": False}, {"diff": False},
        {"local_action": "command true"}, {"action": "command true"}, {"vars": None}, {"vars": []}, {"vars": "x"}, {"vars": {"a b": 1}}, {"args": None}, {"args": []}, {"args": {}}, {"args": "x"},
        {"tags": []}, {"tags": {"a": 1}}, {"environment": [None]}, {"environment": []}, {"environment": "{{ {'A': 1} }}"}, {"environment": "{{ [] }}"}, {"environment": ["{{ {'A': 1} }}"]},
        {"environment": [1]}, {"environment": 5}, {"register": ""}, {"register": None}, {"register": "a b"}, {"register": 5}, {"connection": "local"}, {"collections": []}, {"remote_user": "x"},
    ):  # fmt: skip
        yield PlayCase(f"task with {keyword}", _tasks({**task, **keyword}, after))
    for variables in ({"a": "{{ b }}", "b": "{{ a }}"}, {"a": "{{ a }}"}, {"a": "{{ b }}", "b": "{{ c | default(1) }}"}, {"a": "{{ missing }}", "b": 1}):  # fmt: skip
        for asked in ("a", "b", "a is defined", "a | default('d')", "b | default('d')"):
            shown = {"name": "t", "debug": {"msg": f"{{{{ {asked} }}}}"}, "vars": variables}
            yield PlayCase(f"vars {variables}: {asked}", _tasks(shown, after))
            yield PlayCase(f"vars of the play {variables}: {asked}", _tasks({k: v for k, v in shown.items() if k != "vars"}, after, vars=variables))  # fmt: skip
