"""Parsing of tasks, blocks, handlers, includes and roles."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ktrdr_vm.gates.arguments import find_module, is_template, parse_arguments
from ktrdr_vm.gates.facts import refuse_setting
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.keyword_parser import LOOPS, KeywordParser
from ktrdr_vm.gates.model import Block, Common, Node, Task, find_names
from ktrdr_vm.gates.parser import ELSEWHERE
from ktrdr_vm.profile.strict_yaml import Document, Path

MAX_INCLUDE_DEPTH = 10
MAX_TASKS = 5_000
MAX_RETRIES = 10_000

COMMON_KEYS = frozenset(
    {"name", "when", "vars", "environment", "become", "tags", "ignore_errors", "timeout", "no_log", "run_once"}
)
TASK_KEYS = COMMON_KEYS | LOOPS.keys() | {
    "register", "loop_control", "until", "retries", "delay", "failed_when", "changed_when", "args", "notify"
}  # fmt: skip
BLOCK_KEYS = COMMON_KEYS | {"block", "rescue", "always"}
_INCLUDE_KEYS = (
    COMMON_KEYS - {"ignore_errors", "become", "environment", "timeout", "no_log"}
    | LOOPS.keys()
    | {"loop_control", "register", "args"}
)
_IMPORT_KEYS = COMMON_KEYS | {"args"}
_OTHER_MODULES: Mapping[str, str] = {"include_vars": "use `vars_files` of the play, or `vars`"}
_ROLE_REFUSED: Mapping[str, str] = {
    "dependencies": "list the roles in the playbook",
    "argument_specs": "use `assert` in the tasks",
}
_TUPLE = re.compile(r"\s*\{\{\s*\(")
_LOOKUP_LOOPS = "use `loop` with a filter, such as `product`, `zip`, `subelements` or `range`"


class TaskParser(KeywordParser):
    """Parses lists of tasks. `files` are the names of the files from the playbook to the current one."""

    def __init__(self, *readers: Any) -> None:
        super().__init__(*readers)
        self._tasks = 0
        self._handlers: list[Task] = []
        self._lost_handlers = False
        self._role_scope: dict[str, Common] = {}
        self._repeatable: set[str] = set()
        self._loads: dict[str, list[bool]] = {}

    def _nodes(self, document: Document, path: Path, data: Any, files: tuple[str, ...]) -> tuple[Node, ...]:
        if data is None:
            return ()
        if not isinstance(data, list):
            self._note(document, path, "must be a list of tasks")
            return ()
        return tuple(
            node for number, item in enumerate(data) if (node := self._node(document, (*path, number), item, files))
        )

    def _node(self, document: Document, path: Path, data: Any, files: tuple[str, ...]) -> Node | None:
        if isinstance(data, dict) and {"block", "rescue", "always"} & data.keys():
            return self._block(document, path, data, files)
        return self._task(document, path, data, files)

    def _block(self, document: Document, path: Path, data: dict[str, Any], files: tuple[str, ...]) -> Block | None:
        if not self._mapping(document, path, data, BLOCK_KEYS, "a block"):
            return None
        if not data.get("block") and (data.get("rescue") or data.get("always") or "block" not in data):
            self._note(document, path, "`rescue` and `always` require a `block` with tasks")
        parts = {
            key: self._nodes(document, (*path, key), data.get(key), files) for key in ("block", "rescue", "always")
        }
        return Block(
            self._name(document, path, data), place(document, path), self._common(document, path, data), **parts
        )

    def _task(
        self, document: Document, path: Path, data: Any, files: tuple[str, ...], more: frozenset[str] = frozenset()
    ) -> Node | None:
        called = self._find_module(document, path, data, more)
        if called is None:
            return None
        key, module = called
        arguments, wrong = parse_arguments(module, data[key], data.get("args"))
        for message in wrong:
            self._note(document, (*path, key), message, at_key=True)
        if module == "set_fact":
            self._defined |= arguments.keys()
            for reason in filter(None, map(refuse_setting, arguments)):
                self._note(document, (*path, key), reason, at_key=True)
        keys = (
            _INCLUDE_KEYS
            if module in ("include_tasks", "include_role")
            else _IMPORT_KEYS
            if module.startswith("import_")
            else None
        )
        for extra in sorted(data.keys() - keys - {key}) if keys else ():
            self._note(
                document,
                (*path, extra),
                f"{extra!r} is not supported on {module}; put it on a block around it",
                at_key=True,
            )
        self._check_templates(document, (*path, key), data[key], module)
        self._check_templates(document, (*path, "args"), data.get("args"), module)
        if module == "template" and isinstance(arguments.get("src"), str):
            self._check_file(document, (*path, key), arguments["src"])
        common = self._common(document, path, data)
        included = self._included(document, (*path, key), module, arguments, files, conditional=bool(common.when))
        name = self._name(document, path, data) or key
        if module.startswith("import_"):
            return Block(name, place(document, path), common, included)
        return self._make_task(
            document, path, data, Task(name, module, arguments, place(document, path), common, included=included)
        )

    def _find_module(self, document: Document, path: Path, data: Any, more: frozenset[str]) -> tuple[str, str] | None:
        """The key of a task that names its module, and the module. All other keys must be keywords."""
        if not isinstance(data, dict):
            self._note(document, path, "a task is a mapping")
            return None
        self._tasks += 1
        if self._tasks == MAX_TASKS + 1:
            self._note(document, path, f"more than {MAX_TASKS} tasks")
        called = [(key, module) for key in data if (module := find_module(key))]
        unknown = [key for key in data if key not in TASK_KEYS | more and not find_module(key)]
        for key in unknown:
            is_loop = key.startswith("with_")
            kind = "keyword" if key in ELSEWHERE or is_loop else "module or keyword"
            hint = (
                _LOOKUP_LOOPS
                if is_loop
                else (ELSEWHERE.get(key) or _OTHER_MODULES.get(key.removeprefix("ansible.builtin."), ""))
            )
            self._note(
                document,
                (*path, key),
                f"the {kind} {key!r} is not supported{' here' if not hint else f'; {hint}'}",
                at_key=True,
            )
        if len(called) != 1:
            if called or not unknown:
                self._note(
                    document, path, f"a task must call exactly one module, and this one calls {len(called) or 'none'}"
                )
            return None
        return called[0]

    def _make_task(self, document: Document, path: Path, data: dict[str, Any], task: Task) -> Task:
        """The task with its own keywords, in addition to those that blocks have too."""
        for key in ("failed_when", "changed_when", "retries", "delay", "loop_control"):
            if key in data and data[key] is None:
                self._note(document, (*path, key), f"`{key}` has no value, which is an error of the task in Ansible")
        for name, highest in (("retries", MAX_RETRIES), ("delay", 86_400)):
            self._check_number(document, (*path, name), data.get(name), highest)
            self._check_templates(document, (*path, name), data.get(name))
        if isinstance(retries := data.get("retries"), float) and not retries.is_integer():
            self._note(document, (*path, "retries"), f"'retries' must be a whole number, not {retries:g}")
        loops = [key for key in LOOPS if data.get(key) is not None]
        for key in sorted(key for key in LOOPS if key.startswith("with_") and key in data and data[key] is None):
            self._note(document, (*path, key), f"`{key}` has no value; without items, write an empty list")
        if isinstance(listed := data.get("with_list"), str) and _TUPLE.match(listed):
            self._note(document, (*path, "with_list"), "`with_list` takes a list: write [ ] in place of ( )")
        if len(loops) > 1:
            self._note(
                document, (*path, loops[1]), f"a task has one loop, and this one has {' and '.join(loops)}", at_key=True
            )
        return replace(
            task,
            register=self._register(document, path, data),
            loop=self._loop(document, (*path, loops[0]), data[loops[0]]) if loops else None,
            loop_kind=LOOPS[loops[0]] if loops else "",
            loop_control=self._loop_control(document, (*path, "loop_control"), data.get("loop_control")),
            # As in Ansible, no condition at all is as if the keyword were not there.
            until=self._conditions(document, path, data, "until") or None,
            retries=data.get("retries"),
            delay=data.get("delay"),
            failed_when=self._conditions(document, path, data, "failed_when") or None,
            changed_when=self._conditions(document, path, data, "changed_when") or None,
            notify=self._notify(document, (*path, "notify"), data.get("notify")),
            notifies_names=isinstance(data.get("notify"), list),
            listen=self._topics(document, (*path, "listen"), data.get("listen")),
        )

    def _topics(self, document: Document, path: Path, value: Any) -> tuple[str, ...]:
        """The topics of a handler. One text is one topic, with its commas, as in Ansible."""
        return self._words(document, path, [value] if isinstance(value, str) else value, "listen")

    # -- handlers ---------------------------------------------------------------------------------------------------

    def _handler_list(
        self, document: Document, path: Path, data: Any, files: tuple[str, ...], role: Common | None = None
    ) -> None:
        """Add handlers to those of the play. A handler is a plain task, or `import_tasks` of a file of handlers."""
        if data is not None and not isinstance(data, list):
            self._note(document, path, "must be a list of handlers")
            return
        names: set[str] = set()
        for number, item in enumerate(data or []):
            here = (*path, number)
            if isinstance(item, dict) and (
                key := next((key for key in item if find_module(key) == "import_tasks"), "")
            ):
                self._imported_handlers(document, here, item, key, files, role)
                continue
            handler = self._task(document, here, item, files, frozenset({"listen"}))
            if handler is None:
                self._lost_handlers = True
                continue
            if not isinstance(handler, Task) or handler.is_include:
                self._lost_handlers = True
                self._note(
                    document,
                    here,
                    "a handler is a task or `import_tasks`; blocks, includes and roles are not supported as handlers",
                )
            elif is_template(handler.name):
                self._note(document, (*here, "name"), "the name of a handler must be literal; use `listen`")
            elif (nameless := not item.get("name")) is False and handler.name in names:
                self._note(document, (*here, "name"), f"two handlers of this list are named {handler.name!r}")
            else:
                names.add(handler.name)
                handler = replace(handler, is_nameless=nameless)
                self._handlers.append(
                    handler if role is None else replace(handler, common=_merge(role, handler.common))
                )

    def _imported_handlers(
        self,
        document: Document,
        path: Path,
        data: dict[str, Any],
        key: str,
        files: tuple[str, ...],
        role: Common | None,
    ) -> None:
        """The handlers of another file, with the keywords of the import."""
        arguments, wrong = parse_arguments("import_tasks", data[key], data.get("args"))
        for message in wrong:
            self._note(document, (*path, key), message, at_key=True)
        for extra in sorted(data.keys() - {"name", "vars", "when", "tags", "args", key}):
            self._note(document, (*path, extra), f"{extra!r} is not supported on an import of handlers", at_key=True)
        outer = self._common(document, path, data)
        before = len(self._handlers)
        found = self._find_included(document, (*path, key), "import_tasks", arguments.get("file", ""), files)
        if found is None:
            self._lost_handlers = True
            return
        self._handler_list(found, (), found.data, (*files, found.source), role)
        for number, handler in enumerate(self._handlers[before:], start=before):
            common = handler.common
            merged = replace(
                common,
                when=(*outer.when, *common.when),
                vars={**outer.vars, **common.vars},
                tags=(*outer.tags, *common.tags),
            )
            self._handlers[number] = replace(handler, common=merged)

    def _check_notified(self) -> None:
        """Refuse a `notify` without a handler, which would be an error only when its task changes something."""
        if self._lost_handlers:
            return  # one that is refused already
        known = {topic for handler in self._handlers for topic in (*find_names(handler), *handler.listen)}
        for document, path, name in self._notified:
            if name not in known:
                self._note(document, path, f"there is no handler {name!r} in this play")

    # -- includes, imports, roles -----------------------------------------------------------------------------------

    def _included(
        self,
        document: Document,
        path: Path,
        module: str,
        arguments: Mapping[str, Any],
        files: tuple[str, ...],
        *,
        conditional: bool,
    ) -> tuple[Node, ...]:
        if module in ("include_tasks", "import_tasks"):
            return self._include(document, path, module, arguments.get("file", ""), files)
        if module in ("include_role", "import_role"):
            tasks_from = arguments.get("tasks_from", "main")
            role = self._role(
                document,
                path,
                arguments.get("name"),
                files,
                tasks_from,
                static=module == "import_role",
                conditional=conditional,
            )
            return (role,) if role else ()
        return ()

    def _include(
        self, document: Document, path: Path, module: str, name: Any, files: tuple[str, ...]
    ) -> tuple[Node, ...]:
        included = self._find_included(document, path, module, name, files)
        return self._nodes(included, (), included.data or [], (*files, included.source)) if included else ()

    def _find_included(
        self, document: Document, path: Path, module: str, name: Any, files: tuple[str, ...]
    ) -> Document | None:
        """The parsed file that a task names; None after an error, which is noted."""
        wrong = self._refuse_file_name(name, module)
        if not wrong and name in files:
            wrong = f"{name!r} includes itself"
        elif not wrong and len(files) > MAX_INCLUDE_DEPTH:
            wrong = f"included deeper than {MAX_INCLUDE_DEPTH} files"
        if wrong:
            self._note(document, path, wrong)
            return None
        # As Ansible searches: beside the file, in the role, beside the playbook.
        folder = posixpath.dirname(files[-1]) if len(files) > 1 else ""
        role = "/".join(folder.split("/")[:2]) if folder.startswith("roles/") else ""
        places = dict.fromkeys(posixpath.join(one, name) for one in (folder, role, ""))
        if next(iter(places)) in files:
            self._note(document, path, f"{name!r} includes itself")
            return None
        return self._load(document, path, *places)

    def _role(
        self,
        document: Document,
        path: Path,
        name: Any,
        files: tuple[str, ...],
        tasks_from: Any = "main",
        *,
        static: bool,
        conditional: bool,
    ) -> Block | None:
        """The block of a role's tasks. The variables of a static role are also those of the play. `conditional`: it is
        loaded with a `when`."""
        wrong = self._refuse_file_name(name, "a role") or self._refuse_file_name(tasks_from, "`tasks_from`")
        if not wrong and (":" in name or name.count(".") > 1):
            wrong = (
                f"{name!r} is the role of a collection, which is not supported; copy it to roles/ beside the playbook"
            )
        folder = f"roles/{name}"
        if not wrong and len(files) > MAX_INCLUDE_DEPTH:
            wrong = f"included deeper than {MAX_INCLUDE_DEPTH} files"
        if wrong:
            self._note(document, path, wrong)
            return None
        parts = {}
        for part in ("vars", "defaults"):
            found = self._load_optional(document, path, f"{folder}/{part}/main.yml", f"{folder}/{part}/main.yaml")
            parts[part] = self._variables(found, (), found.data, f"{folder}/{part}") if found is not None else {}
        common = Common(role=str(name), vars=parts["vars"], defaults=parts["defaults"])
        meta = self._load_optional(document, path, f"{folder}/meta/main.yml", f"{folder}/meta/main.yaml")
        about = meta.data if meta is not None and isinstance(meta.data, dict) else {}
        for key, advice in _ROLE_REFUSED.items():
            if meta is not None and about.get(key):
                self._note(meta, (key,), f"{key} of roles are not supported; {advice}")
        if parse_bool(about.get("allow_duplicates")):
            self._repeatable.add(str(name))
        base = str(tasks_from).removesuffix(".yml").removesuffix(".yaml")
        tasks = self._load(document, path, f"{folder}/tasks/{base}.yml", f"{folder}/tasks/{base}.yaml")
        handlers = self._load_optional(document, path, f"{folder}/handlers/main.yml", f"{folder}/handlers/main.yaml")
        if handlers is not None:
            loads = self._loads.setdefault(str(name), [])
            loads.append(conditional)
            if len(loads) > 1 and any(loads):
                self._note(
                    document,
                    path,
                    f"the role {name!r} has handlers and is loaded more than once, also with `when`: which of its"
                    " handlers run differs in Ansible; load it once, or move `when` to its tasks",
                )
            self._handler_list(handlers, (), handlers.data, (*files, handlers.source), common)
        if static:
            self._role_scope[str(name)] = common
        if tasks is None:
            return None
        if tasks.source in files:
            self._note(document, path, f"the role {name!r} includes itself")
            return None
        return Block(
            str(name), place(document, path), common, self._nodes(tasks, (), tasks.data or [], (*files, tasks.source))
        )


def _merge(outer: Common, inner: Common) -> Common:
    """The keywords of a handler within its role."""
    return replace(inner, vars={**outer.vars, **inner.vars}, defaults=outer.defaults, role=outer.role)


def place(document: Document, path: Path) -> str:
    line, column = document.position(path)
    return f"{document.source}:{line}:{column}"
