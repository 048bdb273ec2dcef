"""A playbook as data: the supported subset of Ansible, parsed completely before the first task runs.

Parsing is pure: other files are read with functions of the caller, with names that are relative to the
folder of the playbook and were checked. Unsupported features are errors, and never ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.model import Block, Common, Node, Play, Playbook, Task
from ktrdr_vm.gates.parser import FileReader
from ktrdr_vm.gates.task_parser import BLOCK_KEYS, COMMON_KEYS, TASK_KEYS, TaskParser, place
from ktrdr_vm.profile.strict_yaml import Document, Path, load_yaml

PLAYBOOK_HINT = "correct the playbook; docs/playbooks.md lists the modules and keywords that a gate may use"

_TASK_KEYS, _BLOCK_KEYS = TASK_KEYS, BLOCK_KEYS
_PLAY_KEYS = (COMMON_KEYS - {"when"}) | {
    "hosts", "tasks", "gather_facts", "handlers", "roles", "pre_tasks", "post_tasks", "vars_files"
}  # fmt: skip
_IMPORT_KEYS = frozenset({"import_playbook", "ansible.builtin.import_playbook", "name", "vars", "when", "tags"})
_ROLE_KEYS = COMMON_KEYS - {"name"} | {"role", "name"}


def parse_playbook(
    text: str, source: str, *, read: FileReader | None = None, read_template: FileReader | None = None
) -> Playbook:
    """Parse a playbook and the files it includes. DocumentError with all errors, by file, line and column.

    `read` returns a file of the playbook's folder, `read_template` a file that a task `template` names.
    """
    parser = _PlayParser(read, read_template)
    plays = parser.plays(text, source)
    if parser.problems:
        raise DocumentError(sorted(set(parser.problems)), hint=PLAYBOOK_HINT)
    name = source.replace("\\", "/").rsplit("/", 1)[-1]
    return Playbook(name.removesuffix(".yaml").removesuffix(".yml"), source, plays)


class _PlayParser(TaskParser):
    """Parses the plays of a playbook, and those that it imports."""

    def plays(self, text: str, source: str) -> tuple[Play, ...]:
        found = self._play_list(load_yaml(text, source), ())
        self._check_names()
        return found

    def _play_list(self, document: Document, imported: tuple[str, ...]) -> tuple[Play, ...]:
        if not isinstance(document.data, list) or not document.data:
            self._note(document, (), "a playbook is a list of plays")
            return ()
        plays: list[Play] = []
        for number, data in enumerate(document.data):
            if isinstance(data, dict) and {"import_playbook", "ansible.builtin.import_playbook"} & data.keys():
                plays += self._imported(document, (number,), data, imported)
            elif play := self._play(document, (number,), data):
                plays.append(play)
        return tuple(plays)

    def _imported(
        self, document: Document, path: Path, data: dict[str, Any], imported: tuple[str, ...]
    ) -> tuple[Play, ...]:
        """The plays of another playbook in the same folder, with the keywords of the import."""
        self._mapping(document, path, data, _IMPORT_KEYS, "import_playbook")
        name = data.get("import_playbook", data.get("ansible.builtin.import_playbook"))
        wrong = self._refuse_file_name(name, "import_playbook")
        name = str(name)
        if not wrong and "/" in name:
            wrong = "an imported playbook must be in the folder of the playbook, because its files are searched there"
        elif not wrong and (name in imported or len(imported) > 10):
            wrong = f"{name!r} imports itself"
        if wrong:
            self._note(document, (*path, "import_playbook"), wrong)
            return ()
        common = self._common(document, path, data)
        found = self._load(document, (*path, "import_playbook"), name)
        plays = self._play_list(found, (*imported, name)) if found else ()
        return tuple(
            replace(
                play,
                common=replace(
                    play.common,
                    when=(*common.when, *play.common.when),
                    vars={**play.common.vars, **common.vars},
                    tags=(*common.tags, *play.common.tags),
                ),
            )
            for play in plays
        )

    def _play(self, document: Document, path: Path, data: Any) -> Play | None:
        if not self._mapping(document, path, data, _PLAY_KEYS, "a play"):
            return None
        if data.get("hosts") != "all":
            self._note(document, (*path, "hosts"), "`hosts` must be `all`, because a gate runs in one guest")
        gather = parse_bool(data.get("gather_facts", True))
        if gather is None:
            self._note(
                document,
                (*path, "gather_facts"),
                "`gather_facts` must be true or false, because facts are gathered before the first task",
            )
        self._handlers, self._notified, self._role_scope, self.uses_facts = [], [], {}, False
        self._lost_handlers = False
        files = (document.source,)
        common = self._common(document, path, data)
        common = replace(
            common, vars={**common.vars, **self._vars_files(document, (*path, "vars_files"), data.get("vars_files"))}
        )
        self._handler_list(document, (*path, "handlers"), data.get("handlers"), files)
        before = self._nodes(document, (*path, "pre_tasks"), data.get("pre_tasks"), files)
        earlier = len(self._handlers)
        roles = self._roles(document, (*path, "roles"), data.get("roles"), files)
        # As in Ansible, the handlers of `roles` run before those of the play, which win over theirs of the same name.
        self._handlers = [*self._handlers[earlier:], *self._handlers[:earlier]]
        tasks = self._nodes(document, (*path, "tasks"), data.get("tasks"), files)
        after = self._nodes(document, (*path, "post_tasks"), data.get("post_tasks"), files)
        self._check_notified()
        here = place(document, path)
        facts = (Task("Gathering Facts", "setup", {}, here),) if gather and self.uses_facts else ()
        flush = (Task("run handlers", "meta", {"free_form": "flush_handlers"}, here),) if self._handlers else ()
        sections = ((*section, *flush) for section in (before, (*roles, *tasks), after))
        listed: tuple[Node, ...] = (*facts, *(node for section in sections for node in section))
        return Play(self._name(document, path, data), here, self._with_roles(common), listed, tuple(self._handlers))

    def _with_roles(self, common: Common) -> Common:
        """The variables of the play with those of its roles, which are visible in all of its tasks."""
        variables: dict[str, Any] = dict(common.vars)
        defaults: dict[str, Any] = {}
        for role in self._role_scope.values():
            variables |= role.vars
            defaults |= role.defaults
        return replace(common, vars=variables, defaults=defaults)

    def _vars_files(self, document: Document, path: Path, value: Any) -> dict[str, Any]:
        listed = value if isinstance(value, list) else [] if value is None else [value]
        variables: dict[str, Any] = {}
        for number, name in enumerate(listed):
            here = (*path, number) if isinstance(value, list) else path
            # Of a list within the list, the first file that exists is read.
            choices = name if isinstance(name, list) and name else [name]
            if wrong := next(filter(None, (self._refuse_file_name(one, "vars_files") for one in choices)), ""):
                self._note(document, here, wrong)
            elif found := self._load(document, here, *choices):
                variables |= self._variables(found, (), found.data, found.source)
        return variables

    def _roles(self, document: Document, path: Path, value: Any, files: tuple[str, ...]) -> tuple[Node, ...]:
        if value is not None and not isinstance(value, list):
            self._note(document, path, "`roles` must be a list")
            return ()
        found: list[Node] = []
        listed: list[tuple[Any, ...]] = []
        for number, item in enumerate(value or []):
            here = (*path, number)
            data = {"role": item} if isinstance(item, str) else item
            if not self._mapping(document, here, data, _ROLE_KEYS, "a role"):
                continue
            role = self._role(
                document,
                here,
                data.get("role", data.get("name")),
                files,
                static=True,
                conditional=data.get("when") is not None,
            )
            if role is not None:
                common = self._common(document, here, {key: one for key, one in data.items() if key != "name"})
                called = (role.name, common.when, common.tags, common.vars)
                if called in listed and role.name not in self._repeatable:
                    self._note(
                        document,
                        here,
                        f"the role {role.name!r} is listed twice with the same `when`, `tags` and `vars`, and runs once"
                        " in Ansible; remove the entry, or set `allow_duplicates: true` in the role's meta/main.yml",
                    )
                listed.append(called)
                # Variables of the entry win over those of the role.
                role = replace(role, common=replace(role.common, vars={**role.common.vars, **common.vars}))
                found.append(Block(role.name, role.where, common, (role,)))
        return tuple(found)
