"""The mappings of a recipe, key by key, with all errors at once. The YAML is read by `strict_yaml`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import DocumentError, HostError, Problem
from ktrdr_vm.profile.strict_yaml import MAX_BYTES, Document, load_yaml
from ktrdr_vm.profile.strict_yaml import Path as Place

# The value of a key that the document does not have; a key without a value has None.
_ABSENT = object()


class DocumentReader:
    """A value of the document that must be a mapping, with the errors found so far."""

    def __init__(self, document: Document, place: Place, value: Any, problems: list[Problem], hint: str) -> None:
        self._document, self._place, self._value, self._problems, self._hint = document, place, value, problems, hint

    def section(self, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Section:
        """Read the value as a mapping of exactly these keys. Errors are collected, not raised."""
        values: dict[str, Any] = {}
        section = Section(self._document, self._place, values, self._problems, self._hint)
        if isinstance(self._value, dict):
            for name, value in self._value.items():
                if name in (*required, *optional):
                    values[name] = value
                else:
                    known = ", ".join(sorted((*required, *optional)))
                    section.complain(name, f"is unknown; known: {known}", at_key=True)
            for name in required:
                if name not in values:
                    section.complain(name, "is missing")
        elif self._value is not _ABSENT:
            self._problems.append(self._document.problem(self._place, "must be a mapping"))
        return section

    def has(self, key: str) -> bool:
        """True if the value is a mapping with this key."""
        return isinstance(self._value, dict) and key in self._value

    def raise_problems(self) -> None:
        if self._problems:
            raise DocumentError(self._problems, hint=self._hint)


class Section:
    """The values of one mapping. For an invalid value, a getter returns a default and records the error."""

    def __init__(
        self, document: Document, place: Place, values: dict[str, Any], problems: list[Problem], hint: str
    ) -> None:
        self._document, self._place, self._values, self._problems, self._hint = document, place, values, problems, hint

    def complain(self, *path: str | int, at_key: bool = False) -> None:
        """Record an error: keys beneath this mapping, then the message."""
        *keys, message = path
        self._problems.append(self._document.problem((*self._place, *keys), str(message), at_key=at_key))

    def scalar(self, key: str) -> str:
        value = self._values.get(key)
        if value is None and key not in self._values:
            return ""
        text = _text(value)
        if not text:
            self.complain(key, "must be text")
        return text or ""

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.scalar(key)
        if value and not pattern.fullmatch(value):
            self.complain(key, f"{value!r} is not allowed; it must match {pattern.pattern}")
            return ""
        return value

    def texts(self, key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        found: list[str] = []
        for index, item in enumerate(self._list(key)):
            text = _text(item)
            if text is None or not pattern.fullmatch(text):
                self.complain(key, index, f"{item!r} is not allowed; it must be text that matches {pattern.pattern}")
            else:
                found.append(text)
        return tuple(found)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self.complain(key, "must be true or false")
            return default
        return value

    def mapping(self, key: str, names: re.Pattern[str], values: re.Pattern[str]) -> tuple[tuple[str, str], ...]:
        given = self._values.get(key, {})
        if not isinstance(given, dict):
            self.complain(key, "must be a mapping")
            return ()
        found: dict[str, str] = {}
        for name, value in given.items():
            text = _text(value)
            if not names.fullmatch(name):
                self.complain(key, name, f"must match {names.pattern}", at_key=True)
            elif text is None or not values.fullmatch(text):
                self.complain(key, name, "must be text of one line")
            else:
                found[name] = text
        return tuple(sorted(found.items()))

    def section(self, key: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Section:
        value = self._values.get(key, _ABSENT)
        reader = DocumentReader(self._document, (*self._place, key), value, self._problems, self._hint)
        return reader.section(required=required, optional=optional)

    def sections(self, key: str) -> tuple[DocumentReader, ...]:
        places = enumerate(self._list(key))
        return tuple(
            DocumentReader(self._document, (*self._place, key, index), item, self._problems, self._hint)
            for index, item in places
        )

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key, [])
        if not isinstance(value, list):
            self.complain(key, "must be a list")
            return []
        return value


def _text(value: Any) -> str | None:
    """Text, or a whole number as text; None for another type of YAML, such as `on`."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def read_document(path: Path, *, hint: str) -> DocumentReader:
    """Parse one YAML file. DocumentError if it is not valid YAML."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostError(
            f"cannot be read: {error.strerror}", where=str(path), hint="check the name and the permissions of the file"
        ) from error
    try:
        document = load_yaml(content, str(path))
    except DocumentError as error:
        raise DocumentError(error.problems, hint=hint) from None
    reader = DocumentReader(document, (), document.data, [], hint)
    if not isinstance(document.data, dict):
        raise DocumentError([document.problem((), "must be a mapping")], hint=hint)
    return reader
