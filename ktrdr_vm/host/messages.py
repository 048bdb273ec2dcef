"""Messages between two processes of this program: JSON objects whose fields are known. The other side may be the
guest's."""

from __future__ import annotations

from typing import Any


def require_fields(content: object, *names: str) -> dict[str, Any]:
    """The object, when it has exactly these fields; otherwise ValueError."""
    if not isinstance(content, dict):
        raise ValueError("a message is an object")
    if unknown := sorted(str(name)[:40] for name in content.keys() - set(names)):
        raise ValueError(f"a message has no {', '.join(unknown)!a}"[:200])
    if missing := sorted(set(names) - content.keys()):
        raise ValueError(f"{', '.join(missing)} is missing in a message")
    return content


def require_list(value: object, length: int) -> list[Any]:
    """The list, when it has so many entries; otherwise ValueError."""
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"a list of {length} belongs here")
    return value


def require_number(value: object, least: int, most: int) -> int:
    """The whole number, when it is from `least` to `most`; otherwise ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a whole number from {least} to {most} belongs here")
    return value


def require_text(value: object) -> str:
    """The text; ValueError for everything else."""
    if not isinstance(value, str):
        raise ValueError("a text belongs here")
    return value
