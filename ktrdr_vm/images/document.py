"""Strict reading of a small YAML document: no aliases, no tags, no duplicate or unknown keys, all problems at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ktrdr_vm.errors import DocumentError, HostError, Problem

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 8
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "bool", "null", "float", "map", "seq"))


@dataclass
class _Problems:
    source: str
    hint: str
    found: list[Problem] = field(default_factory=list)

    def add(self, node: yaml.Node | None, path: str, message: str) -> None:
        line, column = (node.start_mark.line + 1, node.start_mark.column + 1) if node is not None else (0, 0)
        self.found.append(Problem(self.source, line, column, path, message))


class DocumentReader:
    """A node of the document that should be a mapping, with the problems found so far."""

    def __init__(self, node: yaml.Node | None, path: str, problems: _Problems) -> None:
        self._node, self._path, self._problems = node, path, problems

    def section(self, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Section:
        """Take the node as a mapping of exactly these keys. What is wrong with it is remembered, not raised."""
        values: dict[str, yaml.Node] = {}
        if isinstance(self._node, yaml.MappingNode):
            for key, value in self._node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                if name in values:
                    self._problems.add(key, self._join(name), "is there twice")
                elif name not in (*required, *optional):
                    known = ", ".join(sorted((*required, *optional)))
                    self._problems.add(key, self._join(name), f"is not known here; known: {known}")
                else:
                    values[name] = value
            for name in required:
                if name not in values:
                    self._problems.add(self._node, self._join(name), "is missing")
        elif self._node is not None:
            self._problems.add(self._node, self._path, "must be a mapping")
        return Section(values, self._path, self._problems, self._node)

    def raise_problems(self) -> None:
        if self._problems.found:
            raise DocumentError(self._problems.found, hint=self._problems.hint)

    def _join(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


class Section:
    """The values of one mapping. Each getter returns something harmless when the value is wrong, and remembers why."""

    def __init__(self, values: dict[str, yaml.Node], path: str, problems: _Problems, node: yaml.Node | None) -> None:
        self._values, self._path, self._problems, self._node = values, path, problems, node

    def complain(self, key: str, message: str) -> None:
        self._problems.add(self._values.get(key, self._node), self._join(key), message)

    def scalar(self, key: str) -> str:
        node = self._values.get(key)
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self.complain(key, "must be a text")
            return ""
        return str(node.value)

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.scalar(key)
        if value and not pattern.fullmatch(value):
            self.complain(key, f"{value!r} is not allowed; it must match {pattern.pattern}")
            return ""
        return value

    def texts(self, key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        node = self._values.get(key)
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.complain(key, "must be a list")
            return ()
        found: list[str] = []
        for index, item in enumerate(node.value):
            place = f"{self._join(key)}[{index}]"
            if not isinstance(item, yaml.ScalarNode) or not pattern.fullmatch(item.value):
                self._problems.add(item, place, f"{item.value!r} is not allowed; it must match {pattern.pattern}")
            else:
                found.append(item.value)
        return tuple(found)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.scalar(key)
        if value not in ("", "true", "false"):
            self.complain(key, "must be true or false")
        return value == "true" if value else default

    def mapping(self, key: str, names: re.Pattern[str], values: re.Pattern[str]) -> tuple[tuple[str, str], ...]:
        node = self._values.get(key)
        if node is None:
            return ()
        if not isinstance(node, yaml.MappingNode):
            self.complain(key, "must be a mapping")
            return ()
        found: dict[str, str] = {}
        for name, value in node.value:
            place = f"{self._join(key)}.{name.value}"
            if not names.fullmatch(str(name.value)) or name.value in found:
                self._problems.add(name, place, f"must be there once and match {names.pattern}")
            elif not isinstance(value, yaml.ScalarNode) or not values.fullmatch(value.value):
                self._problems.add(value, place, "must be a text of one line")
            else:
                found[name.value] = value.value
        return tuple(sorted(found.items()))

    def section(self, key: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Section:
        reader = DocumentReader(self._values.get(key), self._join(key), self._problems)
        return reader.section(required=required, optional=optional)

    def sections(self, key: str) -> tuple[DocumentReader, ...]:
        node = self._values.get(key)
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.complain(key, "must be a list")
            return ()
        return tuple(DocumentReader(item, f"{self._join(key)}[{index}]", self._problems) for index, item in enumerate(node.value))

    def _join(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def read_document(path: Path, *, hint: str) -> DocumentReader:
    """Parse one YAML file. What is wrong with its form alone is raised here, since nothing can be read from it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HostError(f"cannot be read: {error.strerror}", where=str(path), hint="check the name and its rights") from error
    problems = _Problems(str(path), hint)
    if len(content) > _MAX_BYTES:
        problems.add(None, "", f"is larger than {_MAX_BYTES} bytes")
        raise DocumentError(problems.found, hint=hint)
    try:
        _check_events(content, problems)
        node = yaml.compose(content, Loader=yaml.SafeLoader) if not problems.found else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problems.found.append(Problem(str(path), line, column, "", str(getattr(error, "problem", None) or error)))
        raise DocumentError(problems.found, hint=hint) from error
    if not problems.found and not isinstance(node, yaml.MappingNode):
        problems.add(node, "", "must be a mapping")
    reader = DocumentReader(node, "", problems)
    reader.raise_problems()
    return reader


def _check_events(content: bytes, problems: _Problems) -> None:
    """Refuse what a recipe never needs, before any tree is built from it."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        message = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            message = "anchors and aliases are not allowed"
        elif getattr(event, "tag", None) not in (None, "!", *_PLAIN_TAGS):
            message = "tags are not allowed"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth == _MAX_DEPTH:
                message = f"is nested deeper than {_MAX_DEPTH - 1} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if message:
            problems.found.append(Problem(problems.source, line, column, "", message))
