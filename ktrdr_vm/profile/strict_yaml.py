"""YAML from an untrusted branch, read into plain data with the place of every value.

One document; mappings, sequences and scalars only. Tags, anchors and aliases, duplicate keys and everything beyond the
limits are refused with line and column. Scalars follow YAML 1.1 as Ansible reads it, without three of its traps:
`22:22` is a string and not a base-60 number, a date is a string, and a key is the text that the author wrote, `on` and
`1.10` too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import yaml

from ktrdr_vm.errors import DocumentError, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_VALUES = 50_000
MAX_PROBLEMS = 1000

Path = tuple[str | int, ...]

_EVENT_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HINT = "correct the document; `ktrdr-vm validate` shows all errors at once"


class _Scalars(yaml.SafeLoader):
    """The resolution of plain scalars by PyYAML, without base-60 numbers and dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass
class Document:
    """Plain data and the place of each value. Lines and columns count from 1."""

    source: str
    data: Any = None
    positions: dict[Path, tuple[int, int]] = field(default_factory=dict)
    key_positions: dict[Path, tuple[int, int]] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    """Numbers whose text is another one than theirs, such as `3.10`, `0755` and `1_000`."""

    def position(self, path: Path) -> tuple[int, int]:
        """The place of the value at `path`, or of the nearest parent that has one; (0, 0) in an empty document."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (0, 0))

    def key_position(self, path: Path) -> tuple[int, int]:
        """The place of the key of `path`; that of the value if it has no key."""
        return self.key_positions.get(path) or self.position(path)

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> Problem:
        line, column = self.key_position(path) if at_key else self.position(path)
        return Problem(self.source, line, column, format_path(path), message)


def format_path(path: Path) -> str:
    """`('egress', 'allow', 0, 'host')` as `egress.allow[0].host`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def load_yaml(text: str | bytes, source: str, *, verbatim: Collection[str] = ()) -> Document:
    """Read one document. Raises DocumentError with every problem that can be told apart; never anything else.

    Below the top-level keys `verbatim` each scalar but null is the text that the author wrote.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise _refused(Problem(source, 0, 0, "", f"larger than {MAX_BYTES // 1024} KiB"))
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refused(Problem(source, line, 1, "", "not UTF-8")) from None
    builder = _Builder(source, frozenset(verbatim))
    try:
        for event in yaml.parse(decoded, Loader=_EVENT_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise _refused(*builder.problems, Problem(source, line, column, "", error.problem or "not YAML")) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = decoded.count("\n", 0, position) + 1 if isinstance(position, int) else 0
        reason = getattr(error, "reason", None) or "not YAML"
        raise _refused(
            *builder.problems, Problem(source, line, 1, "", f"a character that YAML does not allow: {reason}")
        ) from None
    if builder.problems:
        raise _refused(*builder.problems)
    return builder.document


def _refused(*problems: Problem) -> DocumentError:
    return DocumentError(problems, hint=_HINT)


class _Builder:
    """Turns parser events into data without recursion, so that the depth is limited before it costs memory."""

    def __init__(self, source: str, verbatim: frozenset[str]) -> None:
        self._verbatim = verbatim
        self.document = Document(source)
        self.problems: list[Problem] = []
        self._scalars = _Scalars("")
        self._open: list[tuple[Any, Path]] = []
        self._keys: list[Any] = []  # for each open container: the pending key of a mapping, or _NO_KEY
        self._values = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        mark: Any = event.start_mark
        line, column = mark.line + 1, mark.column + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(line, column, "a second document; only one is allowed")
        elif isinstance(event, yaml.AliasEvent):
            self._note(line, column, "an alias, which is not supported; repeat the value")
            self._place(None, line, column)
        elif isinstance(event, yaml.ScalarEvent):
            self._check(event, line, column)
            value = self._scalar(event, line, column)
            path = self._place(value, line, column)
            if isinstance(value, int | float) and not isinstance(value, bool) and str(value) != event.value:
                self.document.written[path] = event.value
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._check(event, line, column)
            if len(self._open) >= MAX_DEPTH:
                self._stop(line, column, f"nested more than {MAX_DEPTH} levels deep")
            container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
            path = self._place(container, line, column)
            self._open.append((container, path))
            self._keys.append(_NO_KEY)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._open.pop()
            self._keys.pop()

    def _check(self, event: Any, line: int, column: int) -> None:
        if event.anchor:
            self._note(line, column, "an anchor, which is not supported; repeat the value where it is needed")
        if event.tag:
            self._note(line, column, f"the tag {event.tag[:60]!r}, which is not supported; use plain values")

    def _scalar(self, event: yaml.ScalarEvent, line: int, column: int) -> Any:
        if not event.implicit[0]:
            return event.value
        tag = self._scalars.resolve(yaml.ScalarNode, event.value, (True, False))  # type: ignore[no-untyped-call]
        if self._is_text() and not tag.endswith(":null"):
            return event.value
        if tag.endswith(":int") and ":" in event.value:
            return event.value
        if tag.endswith(":float") and ":" in event.value:
            return event.value
        try:
            return self._scalars.construct_object(yaml.ScalarNode(tag, event.value))
        except ValueError:
            self._note(line, column, "a number that cannot be read")
            return None

    def _is_text(self) -> bool:
        """True where the next scalar is a key, or below a key that is read verbatim."""
        if not self._open:
            return False
        container, path = self._open[-1]
        if isinstance(container, dict) and self._keys[-1] is _NO_KEY:
            return True
        return (path[0] if path else self._keys[-1]) in self._verbatim

    def _place(self, value: Any, line: int, column: int) -> Path:
        self._values += 1
        if self._values > MAX_VALUES:
            self._stop(line, column, f"more than {MAX_VALUES} values")
        if not self._open:
            self.document.data = value
            self.document.positions[()] = (line, column)
            return ()
        container, path = self._open[-1]
        if isinstance(container, list):
            here: Path = (*path, len(container))
            container.append(value)
        elif self._keys[-1] is _NO_KEY:
            self._keys[-1] = self._key(value, container, path, line, column)
            return path
        else:
            key, self._keys[-1] = self._keys[-1], _NO_KEY
            here = (*path, key)
            container[key] = value
        self.document.positions[here] = (line, column)
        return here

    def _key(self, value: Any, container: dict[str, Any], path: Path, line: int, column: int) -> str:
        if not isinstance(value, str):
            self._note(line, column, "a key that is not text")
            value = str(value)[:100]
        if value in container:
            self._note(line, column, f"the key {value!r} occurs twice", (*path, value))
        self.document.key_positions[(*path, value)] = (line, column)
        return str(value)

    def _note(self, line: int, column: int, message: str, path: Path = ()) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            self._stop(line, column, f"more than {MAX_PROBLEMS} problems")
        self.problems.append(Problem(self.document.source, line, column, format_path(path), message))

    def _stop(self, line: int, column: int, message: str) -> None:
        raise yaml.MarkedYAMLError(problem=message, problem_mark=yaml.Mark("", 0, line - 1, column - 1, "", 0))


_NO_KEY = object()
