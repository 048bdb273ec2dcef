"""Messages between two processes of this program: JSON objects with known fields. The other process may be controlled
by the guest."""

from __future__ import annotations

from typing import Any


def require_fields(content: object, *names: str) -> dict[str, Any]:
    """The object if it has exactly these fields, else ValueError."""
    if not isinstance(content, dict):
        raise ValueError("a message is an object")
    if unknown := sorted(str(name)[:40] for name in content.keys() - set(names)):
        raise ValueError(f"unknown fields of a message: {', '.join(unknown)!a}"[:200])
    if missing := sorted(set(names) - content.keys()):
        raise ValueError(f"missing fields of a message: {', '.join(missing)}")
    return content


def require_list(value: object, length: int) -> list[Any]:
    """The list if it has that many entries, else ValueError."""
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"a list of {length} entries is required")
    return value


def require_number(value: object, least: int, most: int) -> int:
    """The integer if it is from `least` to `most`, else ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"an integer from {least} to {most} is required")
    return value


def require_text(value: object) -> str:
    """The text, else ValueError."""
    if not isinstance(value, str):
        raise ValueError("a text is required")
    return value
