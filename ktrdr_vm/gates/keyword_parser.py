"""Parsing of the keywords of a task that no block has: `register`, loops, `notify`."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.gates.arguments import is_template
from ktrdr_vm.gates.facts import is_variable
from ktrdr_vm.gates.model import LoopControl
from ktrdr_vm.gates.parser import Parser
from ktrdr_vm.profile.strict_yaml import Document, Path

LOOPS = {"loop": "", "with_list": "list", "with_items": "items", "with_dict": "dict"}
"""The keywords of loops, each with the kind of its items (`Task.loop_kind`)."""


class KeywordParser(Parser):
    """Collects the names that tasks notify, which are checked when all handlers are known."""

    def __init__(self, *readers: Any) -> None:
        super().__init__(*readers)
        self._notified: list[tuple[Document, Path, str]] = []

    def _register(self, document: Document, path: Path, data: dict[str, Any]) -> str:
        name = data.get("register")
        if name is None:
            return ""
        if not is_variable(name):
            self._note(document, (*path, "register"), f"{str(name)[:60]!r} is not the name of a variable")
            return ""
        self._defined.add(name)
        return str(name)

    def _loop(self, document: Document, path: Path, loop: Any) -> Any:
        allowed: tuple[type, ...] = {"with_items": (list, str, int), "with_dict": (dict, list)}.get(
            str(path[-1]), (list,)
        )
        if not isinstance(loop, allowed) and not is_template(loop):
            self._note(document, path, f"`{path[-1]}` must be a {'mapping' if path[-1] == 'with_dict' else 'list'}")
        self._check_templates(document, path, loop)
        return loop

    def _loop_control(self, document: Document, path: Path, data: Any) -> LoopControl:
        keys = frozenset({"loop_var", "index_var", "label", "pause"})
        if data is None or not self._mapping(document, path, data, keys, "loop_control"):
            return LoopControl()
        for key in ("loop_var", "index_var"):
            if key in data and not is_variable(data[key]):
                self._note(document, (*path, key), f"{str(data[key])[:60]!r} is not the name of a variable")
        if isinstance(data.get("label"), (list, dict)):
            self._note(document, (*path, "label"), "`label` must be text")
        self._check_number(document, (*path, "pause"), data.get("pause"), 86_400)
        self._check_templates(document, path, data)
        return LoopControl(
            str(data.get("loop_var", "item")), str(data.get("index_var", "")), data.get("label"), data.get("pause")
        )

    def _notify(self, document: Document, path: Path, value: Any) -> tuple[Any, ...]:
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(name, str) for name in listed):
            self._note(document, path, "`notify` must be the name of a handler, or a list of them")
            return ()
        self._check_templates(document, path, listed)
        self._notified += [(document, path, name) for name in listed if not is_template(name)]
        return tuple(listed)
