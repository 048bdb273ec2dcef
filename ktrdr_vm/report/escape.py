"""Guest text made safe to show: on a terminal, in a log line, in XML.

Control sequences can hide, recolour or retype what stands on a terminal, and bidirectional marks can reorder it. They are
shown as what they are, `\\x1b` or `\\u202e`, so that nothing is lost and nothing acts.
"""

from __future__ import annotations

import unicodedata

_KEPT_IN_TEXT = {"\n", "\t"}
# Cf: format characters such as bidirectional overrides and zero-width joints. Zl, Zp: separators that act as line breaks.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def escape_text(text: str) -> str:
    """A text of several lines: line breaks and tabs stay, everything else that is not shown is spelled out."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(character if character in _KEPT_IN_TEXT or _is_shown(character) else _spell(character) for character in text)


def escape(text: str) -> str:
    """A text for one line, whole."""
    return escape_line(text, limit=max(len(text), 1))


def escape_line(text: str, *, limit: int = 1000) -> str:
    """A text for one line: line breaks are spelled out too, and a long one is cut with `…`."""
    line = "".join(character if _is_shown(character) else _spell(character) for character in text[: limit + 1])
    return line if len(text) <= limit else f"{line[:limit]}…"


def escape_xml_characters(text: str) -> str:
    """What XML 1.0 cannot hold, even escaped, is spelled out; markup is the business of whoever writes the XML."""
    return "".join(character if character in "\n\t" or _is_shown(character) else _spell(character) for character in text)


def _is_shown(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    return unicodedata.category(character) not in _HIDDEN


def _spell(character: str) -> str:
    code = ord(character)
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
