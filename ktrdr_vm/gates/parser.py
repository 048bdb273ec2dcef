"""What the parsing of all parts of a playbook shares: errors with their places, files, checks of templates and
names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ktrdr_vm.errors import DocumentError, KtrdrError, Problem
from ktrdr_vm.gates.arguments import is_template
from ktrdr_vm.gates.facts import is_fact, is_variable, refuse_name, refuse_setting
from ktrdr_vm.gates.filters import parse_bool
from ktrdr_vm.gates.model import Common
from ktrdr_vm.gates.templating import check_template
from ktrdr_vm.profile.strict_yaml import MAX_PROBLEMS, Document, Path, load_yaml

FileReader = Callable[[str], str]
"""Returns the text of a file by its name beneath the folder of the playbook; raises OSError or KtrdrError."""

MAX_FILES = 200
# Keywords of Ansible that are not supported, each with what to do; they are reported as keywords, not as unknown
# modules.
ELSEWHERE: Mapping[str, str] = dict.fromkeys(
    "any_errors_fatal become_exe become_flags become_method check_mode collections connection debugger "
    "delegate_facts diff fact_path gather_subset gather_timeout ignore_unreachable max_fail_percentage "
    "module_defaults order poll port remote_user serial strategy throttle vars_prompt handlers roles "
    "pre_tasks post_tasks vars_files import_playbook force_handlers listen block rescue always".split(),
    "",
) | {
    "action": "write the module as the key of the task",
    "async": "use `timeout`, or a command in the background and `wait_for`",
    "become_user": "use `command: sudo -u USER …`",
    "delegate_to": "a gate runs nothing on the host; do it in the guest",
    "local_action": "a gate runs nothing on the host; do it in the guest",
}
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_FLAGS = ("become", "ignore_errors", "no_log", "run_once")


class Parser:
    """Collects the errors of one playbook, and the variables that it uses and defines."""

    def __init__(self, read: FileReader | None, read_template: FileReader | None) -> None:
        self.problems: list[Problem] = []
        self.uses_facts = False
        self._read, self._read_template = read, read_template
        self._files = 0
        self._defined: set[str] = set()
        self._used: list[tuple[Document, Path, str, set[str]]] = []

    # -- errors and files -------------------------------------------------------------------------------------------

    def _note(self, document: Document, path: Path, message: str, *, at_key: bool = False) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(document.problem(path, message, at_key=at_key))

    def _mapping(self, document: Document, path: Path, data: Any, keys: frozenset[str], what: str) -> bool:
        if not isinstance(data, dict):
            self._note(document, path, f"{what} is a mapping")
            return False
        for key in data:
            if key not in keys:
                hint = f"; {ELSEWHERE[key]}" if ELSEWHERE.get(key) else ""
                self._note(document, (*path, key), f"{key!r} is not supported in {what}{hint}", at_key=True)
        return True

    def _refuse_file_name(self, name: Any, what: str) -> str:
        """Why a name cannot be read, or an empty text."""
        if not isinstance(name, str) or is_template(name):
            return f"the file of {what} must be a literal name, because it is read before the first task"
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
            return f"{name[:100]!r} is not beneath the playbook's folder"
        self._files += 1
        if self._files > MAX_FILES:
            return f"the playbook has more than {MAX_FILES} files"
        return f"{what} is not supported without a folder" if self._read is None else ""

    def _load(self, document: Document, path: Path, *names: str) -> Document | None:
        """The first of the files that exists, parsed. None after an error, which is noted."""
        if self._read is None:
            return None
        for number, name in enumerate(names):
            try:
                return load_yaml(self._read(name), name)
            except FileNotFoundError as error:
                if number == len(names) - 1:
                    self._note(document, path, f"{names[-1]!r} cannot be read: {error}")
            except DocumentError as error:
                self.problems.extend(error.problems)
                return None
            except (OSError, KtrdrError, UnicodeDecodeError) as error:
                self._note(document, path, f"{name!r} cannot be read: {error}")
                return None
        return None

    def _load_optional(self, document: Document, path: Path, *names: str) -> Document | None:
        """Like `_load`, without an error if there is no such file."""
        for name in names:
            if self._read is not None and self._exists(name):
                return self._load(document, path, name)
        return None

    def _exists(self, name: str) -> bool:
        try:
            return self._read is not None and self._read(name) is not None
        except FileNotFoundError:
            return False
        except (OSError, KtrdrError, UnicodeDecodeError):
            return True

    # -- keywords ---------------------------------------------------------------------------------------------------

    def _name(self, document: Document, path: Path, data: dict[str, Any]) -> str:
        name = data.get("name")
        if isinstance(name, (dict, list)):
            self._note(document, (*path, "name"), "`name` must be text")
            return ""
        return "" if name is None else str(name)

    def _variables(self, document: Document, path: Path, value: Any, what: str) -> dict[str, Any]:
        """A mapping of variables, whose names are defined from here on."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._note(document, path, f"{what} must be a mapping")
            return {}
        for name in value:
            if not is_variable(name):
                self._note(document, (*path, name), f"{name!r} is not the name of a variable", at_key=True)
            elif wrong := refuse_setting(name):
                self._note(document, (*path, name), wrong, at_key=True)
        self._defined |= value.keys()
        self._check_templates(document, path, value)
        return value

    def _common(self, document: Document, path: Path, data: dict[str, Any]) -> Common:
        variables = self._variables(document, (*path, "vars"), data.get("vars"), "`vars`")
        environment = data.get("environment")
        self._check_environment(document, (*path, "environment"), environment)
        for key in _FLAGS:
            value = data.get(key)
            if value is not None and not is_template(value) and parse_bool(value) is None:
                self._note(document, (*path, key), f"{key!r} must be true or false")
            if key == "run_once" and is_template(value):
                self._note(
                    document, (*path, key), "'run_once' must be literally true or false, because it has no effect"
                )
        self._check_number(document, (*path, "timeout"), data.get("timeout"), 7 * 86_400)
        if isinstance(limit := data.get("timeout"), float) and not limit.is_integer():
            self._note(document, (*path, "timeout"), f"'timeout' must be a whole number, not {limit:g}")
        if "tags" in data and data["tags"] is None:
            self._note(document, (*path, "tags"), "`tags` has no value; without tags, write an empty list")
        for key in ("name", "environment", *_FLAGS, "timeout"):
            self._check_templates(document, (*path, key), data.get(key))
        return Common(
            when=self._conditions(document, path, data, "when"),
            vars=variables,
            environment=environment,
            become=data.get("become"),
            tags=self._words(document, (*path, "tags"), data.get("tags"), "tags"),
            ignore_errors=data.get("ignore_errors"),
            timeout=data.get("timeout"),
            no_log=data.get("no_log"),
        )

    def _check_environment(self, document: Document, path: Path, value: Any) -> None:
        """A mapping, or a list of them, of which the later win; each can be a template."""
        for number, layer in enumerate(value if isinstance(value, list) else [value]):
            here = (*path, number) if isinstance(value, list) else path
            if layer is None or is_template(layer):
                continue
            if not isinstance(layer, dict):
                self._note(document, here, "`environment` must be a mapping")
                continue
            for name in layer:
                if not is_template(name) and not _VARIABLE.fullmatch(name):
                    self._note(document, (*here, name), f"{name!r} is not the name of a variable", at_key=True)

    def _words(self, document: Document, path: Path, value: Any, what: str) -> tuple[str, ...]:
        """A list of literal words, or text with commas."""
        listed = [part.strip() for part in value.split(",")] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or not all(
            isinstance(word, (str, int)) and not is_template(word) for word in listed
        ):
            self._note(document, path, f"`{what}` must be a list of words")
            return ()
        return tuple(str(word) for word in listed)

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
                else:
                    self._check_text(document, place, text, expression=not wrapped)
        return tuple(listed)

    def _check_number(self, document: Document, path: Path, value: Any, highest: int) -> None:
        if value is None or is_template(value):
            return
        try:
            if isinstance(value, bool) or not 0 <= float(value) <= highest:
                raise ValueError
        except (ValueError, TypeError):
            self._note(document, path, f"{path[-1]!r} must be a number from 0 to {highest}")

    # -- templates --------------------------------------------------------------------------------------------------

    def _check_templates(self, document: Document, path: Path, value: Any, module: str = "") -> None:
        """Check every template in a value. The conditions of `assert` and the name in `debug: var` are expressions."""
        waiting = [(path, value)]
        while waiting:
            place, item = waiting.pop()
            if isinstance(item, dict):
                waiting += [((*place, key), inner) for key, inner in item.items()]
            elif isinstance(item, list):
                waiting += [((*place, number), inner) for number, inner in enumerate(item)]
            elif isinstance(item, str):
                wrapped = item.strip().startswith("{{")
                condition = module == "assert" and "that" in place
                expression = (condition or (module == "debug" and place[-1] == "var")) and not wrapped
                if expression and is_template(item):
                    self._note(
                        document,
                        place,
                        f"{place[-1] if not condition else 'that'!r} is an expression; write it without braces",
                    )
                elif expression or is_template(item):
                    self._check_text(document, place, item, expression=expression)

    def _check_text(self, document: Document, path: Path, text: str, *, expression: bool) -> None:
        checked = check_template(text, expression=expression)
        if checked.problem:
            self._note(document, path, checked.problem)
            return
        for name, keys in checked.names.items():
            self.uses_facts = self.uses_facts or is_fact(name)
            self._used.append((document, path, name, keys))

    def _check_file(self, document: Document, path: Path, name: str) -> None:
        """Check a template file that a task names. A file that is not there is an error of its task."""
        if self._read_template is None or is_template(name):
            return
        try:
            text = self._read_template(name)
        except (OSError, KtrdrError, UnicodeDecodeError):
            return
        checked = check_template(text)
        if checked.problem:
            self._note(document, path, f"{name}:{checked.line}: {checked.problem}")
            return
        for found, keys in checked.names.items():
            self.uses_facts = self.uses_facts or is_fact(found)
            self._used.append((document, path, found, keys))

    def _check_names(self) -> None:
        """Refuse the variables of Ansible that have no value here, unless the playbook defines them."""
        for document, path, name, keys in self._used:
            if problem := refuse_name(name, keys, self._defined):
                self._note(document, path, problem)
