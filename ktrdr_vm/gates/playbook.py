"""A playbook as data: the supported subset of Ansible, parsed completely before the first task runs.

Parsing is pure: an `include_tasks` is read with a function of the caller, with names that are relative to the
folder of the playbook and were checked. Unsupported features are errors, and never ignored.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from ktrdr_vm.errors import DocumentError, KtrdrError, Problem
from ktrdr_vm.gates.arguments import find_module, is_template, parse_arguments
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.model import Block, Common, Node, Play, Playbook, Task
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.profile.strict_yaml import MAX_PROBLEMS, Document, Path, load_yaml

IncludeReader = Callable[[str], str]
"""Returns the text of a file by its name beneath the folder of the playbook; raises OSError or KtrdrError."""

MAX_INCLUDES = 100
MAX_INCLUDE_DEPTH = 10
MAX_TASKS = 5_000
MAX_RETRIES = 10_000

PLAYBOOK_HINT = "correct the playbook; docs/playbooks.md lists the modules and keywords that a gate may use"


_COMMON_KEYS = frozenset({"name", "when", "vars", "environment", "become", "tags", "ignore_errors", "timeout"})
_TASK_KEYS = _COMMON_KEYS | {"register", "loop", "until", "retries", "delay", "failed_when", "changed_when", "args"}
_BLOCK_KEYS = _COMMON_KEYS | {"block", "rescue", "always"}
_PLAY_KEYS = (_COMMON_KEYS - {"when"}) | {"hosts", "tasks", "gather_facts"}
_INCLUDE_KEYS = _COMMON_KEYS - {"ignore_errors", "become", "environment", "timeout"} | {"loop", "register", "args"}
# Keywords of Ansible that are not supported: reported as keywords, not as unknown modules.
_KNOWN_ELSEWHERE = frozenset(
    "action any_errors_fatal async become_exe become_flags become_method become_user check_mode collections connection "
    "debugger delegate_facts delegate_to diff fact_path force_handlers gather_subset gather_timeout handlers listen "
    "ignore_unreachable import_playbook local_action loop_control max_fail_percentage module_defaults no_log notify order "
    "poll port post_tasks pre_tasks remote_user roles run_once serial strategy throttle vars_files vars_prompt".split()
)


def parse_playbook(text: str, source: str, *, read: IncludeReader | None = None) -> Playbook:
    """Parse a playbook and the task files it includes. DocumentError with all errors, by file, line and column."""
    parser = _Parser(read)
    plays = parser.plays(text, source)
    if parser.problems:
        raise DocumentError(sorted(set(parser.problems)), hint=PLAYBOOK_HINT)
    name = source.replace("\\", "/").rsplit("/", 1)[-1]
    return Playbook(name.removesuffix(".yaml").removesuffix(".yml"), source, plays)


class _Parser:
    """Walks the data of one playbook and collects errors."""

    def __init__(self, read: IncludeReader | None) -> None:
        self.problems: list[Problem] = []
        self._read = read
        self._templar = Templar()
        self._includes = 0
        self._tasks = 0

    def plays(self, text: str, source: str) -> tuple[Play, ...]:
        document = load_yaml(text, source)
        if not isinstance(document.data, list) or not document.data:
            self._note(document, (), "a playbook is a list of plays")
            return ()
        return tuple(play for number, data in enumerate(document.data) if (play := self._play(document, (number,), data)))

    def _play(self, document: Document, path: Path, data: Any) -> Play | None:
        if not self._mapping(document, path, data, _PLAY_KEYS, "a play"):
            return None
        if data.get("hosts") != "all":
            self._note(document, (*path, "hosts"), "`hosts` must be `all`, because a gate runs in one guest")
        if parse_bool(data.get("gather_facts", False)) is not False:
            self._note(document, (*path, "gather_facts"), "facts are not supported; write `gather_facts: false`")
        tasks = self._nodes(document, (*path, "tasks"), data.get("tasks"), (document.source,))
        return Play(self._name(document, path, data), _place(document, path), self._common(document, path, data), tasks)

    def _nodes(self, document: Document, path: Path, data: Any, files: tuple[str, ...]) -> tuple[Node, ...]:
        if data is None:
            return ()
        if not isinstance(data, list):
            self._note(document, path, "must be a list of tasks")
            return ()
        return tuple(node for number, item in enumerate(data) if (node := self._node(document, (*path, number), item, files)))

    def _node(self, document: Document, path: Path, data: Any, files: tuple[str, ...]) -> Node | None:
        if isinstance(data, dict) and {"block", "rescue", "always"} & data.keys():
            return self._block(document, path, data, files)
        return self._task(document, path, data, files)

    def _block(self, document: Document, path: Path, data: dict[str, Any], files: tuple[str, ...]) -> Block | None:
        if not self._mapping(document, path, data, _BLOCK_KEYS, "a block"):
            return None
        if "block" not in data:
            self._note(document, path, "`rescue` and `always` require a `block`")
        parts = {key: self._nodes(document, (*path, key), data.get(key), files) for key in ("block", "rescue", "always")}
        return Block(self._name(document, path, data), _place(document, path), self._common(document, path, data), **parts)

    def _task(self, document: Document, path: Path, data: Any, files: tuple[str, ...]) -> Task | None:
        if not isinstance(data, dict):
            self._note(document, path, "a task is a mapping")
            return None
        self._tasks += 1
        if self._tasks == MAX_TASKS + 1:
            self._note(document, path, f"more than {MAX_TASKS} tasks")
        called = [(key, module) for key in data if (module := find_module(key))]
        unknown = [key for key in data if key not in _TASK_KEYS and not find_module(key)]
        for key in unknown:
            kind = "keyword" if key in _KNOWN_ELSEWHERE or key.startswith("with_") else "module or keyword"
            self._note(document, (*path, key), f"the {kind} {key!r} is not supported", at_key=True)
        if len(called) != 1:
            if called or not unknown:
                self._note(document, path, f"a task must call exactly one module, and this one calls {len(called) or 'none'}")
            return None
        key, module = called[0]
        arguments, wrong = parse_arguments(module, data[key], data.get("args"))
        for message in wrong:
            self._note(document, (*path, key), message, at_key=True)
        if module == "include_tasks":
            for extra in sorted(data.keys() - _INCLUDE_KEYS - {key}):
                self._note(
                    document,
                    (*path, extra),
                    f"{extra!r} is not supported on include_tasks; put it on a block around it",
                    at_key=True,
                )
        self._check_templates(document, (*path, key), data[key], module)
        self._check_loop(document, path, data)
        for name, highest in (("retries", MAX_RETRIES), ("delay", 86_400)):
            self._check_number(document, (*path, name), data.get(name), highest)
        return Task(
            name=self._name(document, path, data) or key,
            module=module,
            arguments=arguments,
            where=_place(document, path),
            common=self._common(document, path, data),
            register=self._register(document, path, data),
            loop=data.get("loop"),
            until=self._conditions(document, path, data, "until") if "until" in data else None,
            retries=data.get("retries"),
            delay=data.get("delay"),
            failed_when=self._conditions(document, path, data, "failed_when") if "failed_when" in data else None,
            changed_when=self._conditions(document, path, data, "changed_when") if "changed_when" in data else None,
            included=self._include(document, (*path, key), arguments, files) if module == "include_tasks" else (),
        )

    def _include(self, document: Document, path: Path, arguments: Mapping[str, Any], files: tuple[str, ...]) -> tuple[Node, ...]:
        name = str(arguments.get("file", ""))
        self._includes += 1
        wrong = ""
        if is_template(name):
            wrong = "the file of include_tasks must be a literal name, because it is read before the first task"
        elif not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
            wrong = f"{name[:100]!r} is not beneath the playbook's folder"
        elif name in files:
            wrong = f"{name!r} includes itself"
        elif self._includes > MAX_INCLUDES or len(files) > MAX_INCLUDE_DEPTH:
            wrong = f"more than {MAX_INCLUDES} includes, or nested deeper than {MAX_INCLUDE_DEPTH}"
        elif self._read is None:
            wrong = "include_tasks is not supported without a folder"
        if wrong or self._read is None:
            self._note(document, path, wrong)
            return ()
        beside = posixpath.join(posixpath.dirname(files[-1]), name) if len(files) > 1 else name
        try:
            try:
                text, name = self._read(beside), beside
            except FileNotFoundError:
                text = self._read(name)
            included = load_yaml(text, name)
        except DocumentError as error:
            self.problems.extend(error.problems)
            return ()
        except (OSError, KtrdrError, UnicodeDecodeError) as error:
            self._note(document, path, f"{name!r} cannot be read: {error}")
            return ()
        return self._nodes(included, (), included.data or [], (*files, name))

    def _common(self, document: Document, path: Path, data: dict[str, Any]) -> Common:
        variables = data["vars"] if data.get("vars") is not None else {}
        if not isinstance(variables, dict):
            self._note(document, (*path, "vars"), "`vars` must be a mapping")
            variables = {}
        for name in variables:
            if not name.isidentifier():
                self._note(document, (*path, "vars", name), f"{name!r} is not the name of a variable", at_key=True)
        environment = data.get("environment")
        if environment is not None and not isinstance(environment, (dict, list)) and not is_template(environment):
            self._note(document, (*path, "environment"), "`environment` must be a mapping")
        for key in ("become", "ignore_errors"):
            value = data.get(key)
            if value is not None and not is_template(value) and parse_bool(value) is None:
                self._note(document, (*path, key), f"{key!r} must be true or false")
        self._check_number(document, (*path, "timeout"), data.get("timeout"), 7 * 86_400)
        for key in ("name", "vars", "environment", "become", "ignore_errors", "timeout"):
            self._check_templates(document, (*path, key), data.get(key), "")
        tags = data.get("tags") or []
        listed = [part.strip() for part in tags.split(",")] if isinstance(tags, str) else tags
        if not isinstance(listed, list) or not all(isinstance(tag, (str, int)) and not is_template(tag) for tag in listed):
            self._note(document, (*path, "tags"), "`tags` must be a list of words")
            listed = []
        return Common(
            when=self._conditions(document, path, data, "when"),
            vars=variables,
            environment=environment,
            become=data.get("become"),
            tags=tuple(str(tag) for tag in listed),
            ignore_errors=data.get("ignore_errors"),
            timeout=data.get("timeout"),
        )

    def _conditions(self, document: Document, path: Path, data: dict[str, Any], key: str) -> tuple[Any, ...]:
        value = data.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        for number, condition in enumerate(listed):
            place = (*path, key, number) if isinstance(value, list) else (*path, key)
            if isinstance(condition, (dict, list)):
                self._note(document, place, f"{key!r} must be an expression or a list of them")
            elif isinstance(condition, str):
                text = condition.strip()
                wrapped = text.startswith("{{") and text.endswith("}}")
                if not wrapped and is_template(text):
                    self._note(document, place, f"{key!r} is an expression; write it without braces")
                elif problem := self._templar.problem(text, expression=not wrapped):
                    self._note(document, place, problem)
        return tuple(listed)

    def _check_loop(self, document: Document, path: Path, data: dict[str, Any]) -> None:
        loop = data.get("loop")
        if loop is not None and not isinstance(loop, list) and not is_template(loop):
            self._note(document, (*path, "loop"), "`loop` must be a list")
        self._check_templates(document, (*path, "loop"), loop, "")

    def _check_number(self, document: Document, path: Path, value: Any, highest: int) -> None:
        if value is None or is_template(value):
            return
        try:
            if isinstance(value, bool) or not 0 <= float(value) <= highest:
                raise ValueError
        except (ValueError, TypeError):
            self._note(document, path, f"{path[-1]!r} must be a number from 0 to {highest}")

    def _check_templates(self, document: Document, path: Path, value: Any, module: str) -> None:
        """Syntax errors anywhere in a value. The conditions of `assert` and the name in `debug: var` are expressions."""
        waiting = [(path, value)]
        while waiting:
            place, item = waiting.pop()
            if isinstance(item, dict):
                waiting += [((*place, key), inner) for key, inner in item.items()]
            elif isinstance(item, list):
                waiting += [((*place, number), inner) for number, inner in enumerate(item)]
            elif isinstance(item, str):
                wrapped = item.strip().startswith("{{")
                expression = (module == "assert" and "that" in place) or (module == "debug" and place[-1] == "var")
                expression = expression and not wrapped
                if (expression or is_template(item)) and (problem := self._templar.problem(item, expression=expression)):
                    self._note(document, place, problem)

    def _register(self, document: Document, path: Path, data: dict[str, Any]) -> str:
        name = data.get("register")
        if name is None:
            return ""
        if not isinstance(name, str) or not name.isidentifier():
            self._note(document, (*path, "register"), f"{str(name)[:60]!r} is not the name of a variable")
            return ""
        return name

    def _name(self, document: Document, path: Path, data: dict[str, Any]) -> str:
        name = data.get("name")
        if isinstance(name, (dict, list)):
            self._note(document, (*path, "name"), "`name` must be text")
            return ""
        return "" if name is None else str(name)

    def _mapping(self, document: Document, path: Path, data: Any, keys: frozenset[str], what: str) -> bool:
        if not isinstance(data, dict):
            self._note(document, path, f"{what} is a mapping")
            return False
        for key in data:
            if key not in keys:
                self._note(document, (*path, key), f"{key!r} is not supported in {what}", at_key=True)
        return True

    def _note(self, document: Document, path: Path, message: str, *, at_key: bool = False) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(document.problem(path, message, at_key=at_key))


def _place(document: Document, path: Path) -> str:
    line, column = document.position(path)
    return f"{document.source}:{line}:{column}"
