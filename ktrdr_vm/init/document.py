"""YAML in which each entry has the reason for which it is there, as a comment above it. Values are written by PyYAML.
Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_WIDTH = 110
# Of the text that a comment takes from the repository.
_MOST_COMMENT = 400


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class Entry:
    """A key with its value, or an entry of a list if the key is empty; `inner` are its own entries.

    One that is not `active` is written as a comment, for a person to complete.
    """

    key: str
    value: Any = None
    reason: str = ""
    inner: Sequence[Entry] = field(default=())
    active: bool = True


def render_document(head: str, entries: Sequence[Entry]) -> str:
    """The document with its heading as a comment."""
    return "\n".join([*comment(head), *_render(entries)]) + "\n"


def dump(value: Any, *, flow: bool = False) -> str:
    """The YAML of plain data, on one line with `flow`."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=100_000 if flow else _WIDTH)
    return text.removesuffix("...\n").rstrip("\n")


def comment(text: str) -> list[str]:
    """The lines of a comment, with nothing in it but printable ASCII."""
    lines = []
    for paragraph in text.split("\n"):
        plain = (
            "".join(one if one.isprintable() else " " for one in paragraph).encode("ascii", "backslashreplace").decode()
        )
        lines += textwrap.wrap(plain[:_MOST_COMMENT], _WIDTH, break_on_hyphens=False) or ([""] if not paragraph else [])
    return [f"# {line}".rstrip() for line in lines]


def indent(lines: Sequence[str], by: int = 2) -> list[str]:
    return [" " * by + line if line else line for line in lines]


def _render(entries: Sequence[Entry]) -> list[str]:
    lines: list[str] = []
    for entry in entries:
        lines += comment(entry.reason) if entry.reason else []
        body = _render_body(entry)
        lines += body if entry.active else [f"# {line}".rstrip() for line in body]
    return lines


def _render_body(entry: Entry) -> list[str]:
    if entry.inner:
        # A key whose entries are all comments would be null.
        empty = not any(one.active for one in entry.inner)
        return [f"{'# ' if empty else ''}{entry.key}:", *indent(_render(entry.inner))]
    text = dump(entry.value, flow=True)
    return [f"{entry.key}: {text}" if entry.key else f"- {text}"]
