"""Escaping of guest text for terminals, log lines and XML.

Control sequences can hide or change text on a terminal, and bidirectional marks can reorder it. They are
shown as escapes, `\\x1b` or `\\u202e`, so that nothing is lost or interpreted.
"""

from __future__ import annotations

import unicodedata

_KEPT_IN_TEXT = {"\n", "\t"}
# Cf: format characters such as bidirectional overrides and zero-width joints. Zl, Zp: separators that act as line
# breaks.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def escape_text(text: str) -> str:
    """A text of several lines: line breaks and tabs are kept, all other non-printable characters are escaped."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character if character in _KEPT_IN_TEXT or _is_shown(character) else _spell(character) for character in text
    )


def escape(text: str) -> str:
    """A text for one line, not cut."""
    return escape_line(text, limit=max(len(text), 1))


def escape_line(text: str, *, limit: int = 1000) -> str:
    """A text for one line: line breaks are escaped too, and a long text is cut with `…`."""
    line = "".join(character if _is_shown(character) else _spell(character) for character in text[: limit + 1])
    return line if len(text) <= limit else f"{line[:limit]}…"


def escape_xml_characters(text: str) -> str:
    """Characters that XML 1.0 cannot contain are escaped; the writer of the XML escapes markup."""
    return "".join(
        character if character in "\n\t" or _is_shown(character) else _spell(character) for character in text
    )


def _is_shown(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    return unicodedata.category(character) not in _HIDDEN


def _spell(character: str) -> str:
    code = ord(character)
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
