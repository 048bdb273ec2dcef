"""Filters of text: regular expressions, quoting, hashes, dates, layout."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import re
import shlex
import time
import uuid
from typing import Any

from jinja2.filters import do_indent

from ktrdr_vm.gates.bounds import TemplateError, check_join, check_percent, check_replace, check_width, measure
from ktrdr_vm.gates.expressions import evaluate

# The namespace of the UUIDs of Ansible's filter `to_uuid`.
_NAMESPACE = "361E6D51-FAEC-444A-9079-341386DA8E2E"
_COMMENTS: dict[str, dict[str, str]] = {
    "plain": {"decoration": "# "},
    "erlang": {"decoration": "% "},
    "c": {"decoration": "// "},
    "cblock": {"beginning": "/*", "decoration": " * ", "end": " */"},
    "xml": {"beginning": "<!--", "decoration": " - ", "end": "-->"},
}


def require_text(name: str, value: Any) -> str:
    """The value if it is text. TemplateError for any other type."""
    if not isinstance(value, str):
        raise TemplateError(f"{name}: requires text, not {type(value).__name__}; convert it with `| string`")
    return value


def make_flags(ignorecase: Any, multiline: Any) -> int:
    return (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)


def regex_search(text: Any, regex: Any, *groups: Any, ignorecase: bool = False, multiline: bool = False) -> Any:
    wanted: list[int | str] = []
    for group in groups:
        named = re.match(r"\\g<(\S+)>", str(group))
        numbered = re.match(r"\\(\d{1,4})", str(group))
        if named is None and numbered is None:
            raise TemplateError(f"regex_search: {str(group)[:40]!r} is not a group such as '\\1' or '\\g<name>'")
        wanted.append(named.group(1) if named else int(numbered.group(1)))  # type: ignore[union-attr]
    found = evaluate("search", regex, str(text), make_flags(ignorecase, multiline))
    if found is None:
        return None
    if not wanted:
        return found["groups"][0]
    try:
        return [
            found["groups"][int(group)] if isinstance(group, int) or group.isdigit() else found["names"][group]
            for group in wanted
        ]
    except (IndexError, KeyError):
        raise TemplateError("regex_search: the expression has no such group") from None


def regex_findall(text: Any, regex: Any, multiline: bool = False, ignorecase: bool = False) -> list[Any]:
    found = evaluate("findall", regex, str(text), make_flags(ignorecase, multiline))
    return [tuple(one) if isinstance(one, list) else one for one in found]


def regex_replace(
    text: Any = "",
    pattern: Any = "",
    replacement: Any = "",
    ignorecase: bool = False,
    multiline: bool = False,
    count: int = 0,
    mandatory_count: int = 0,
) -> str:
    replaced, times = evaluate(
        "sub", pattern, str(text), make_flags(ignorecase, multiline), require_text("regex_replace", replacement), count
    )
    if mandatory_count and times != mandatory_count:
        raise TemplateError(
            f"regex_replace: {str(pattern)[:80]!r} should match {mandatory_count} times and matches {times} times"
        )
    return str(replaced)


def regex_escape(text: Any, re_type: str = "python") -> str:
    if re_type == "python":
        return re.escape(str(text))
    if re_type == "posix_basic":
        return re.sub(r"([].[^$*\\])", r"\\\1", str(text))
    raise TemplateError(f"regex_escape: the type is python or posix_basic, not {str(re_type)[:40]!r}")


def join(values: Any, d: Any = "", attribute: Any = None) -> str:
    listed = list(values)
    if attribute is not None:
        for part in str(attribute).split("."):
            listed = [value[int(part)] if part.isdigit() else value[part] for value in listed]
    check_join(d, listed)
    return str(d).join(str(value) for value in listed)


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    check_replace(text, old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def format_text(text: Any, *values: Any, **named: Any) -> str:
    if values and named:
        raise TemplateError("format: takes positional or named values, not both")
    check_percent(str(text))
    return str(text) % (named or values)


def indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    check_width(width * 10 if isinstance(width, int) else len(str(width)) * 10)
    lines = str(text).split("\n")
    check_join(" " * width if isinstance(width, int) else str(width), lines)
    return do_indent(text, width, first, blank)


def center(text: Any, width: int = 80) -> str:
    check_width(width)
    return str(text).center(width)


def split(text: Any, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return require_text("split", text).split(sep, maxsplit)


def quote(text: Any) -> str:
    return shlex.quote("" if text is None else str(text))


def b64encode(text: Any, encoding: str = "utf-8", urlsafe: bool = False) -> str:
    data = str(text).encode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    return (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()


def b64decode(text: Any, encoding: str = "utf-8", urlsafe: bool = False) -> str:
    data = str(text).encode("utf-8", "surrogateescape")
    try:
        return (base64.urlsafe_b64decode if urlsafe else base64.b64decode)(data).decode(encoding, "surrogateescape")
    except (binascii.Error, LookupError, UnicodeError) as error:
        raise TemplateError(f"b64decode: {error}") from None


def digest(text: Any, hashtype: str = "sha1") -> str:
    try:
        found = hashlib.new(
            require_text("hash", hashtype), str(text).encode("utf-8", "surrogateescape"), usedforsecurity=False
        )
        return found.hexdigest()
    except (ValueError, TypeError):
        raise TemplateError(f"hash: {str(hashtype)[:40]!r} is not supported") from None


def to_uuid(text: Any, namespace: str = _NAMESPACE) -> str:
    try:
        return str(uuid.uuid5(uuid.UUID(namespace), str(text)))
    except (AttributeError, ValueError, TypeError):
        raise TemplateError(f"to_uuid: the namespace must be a UUID, not {str(namespace)[:60]!r}") from None


def to_datetime(text: Any, format: str = "%Y-%m-%d %H:%M:%S") -> datetime.datetime:
    return datetime.datetime.strptime(text, format)


def strftime(text: Any, second: Any = None, utc: bool = False) -> str:
    """The time `second` of the epoch, by default now, in a format. The format must not become long."""
    measure(text)
    try:
        seconds = None if second is None else float(second)
        return time.strftime(text, (time.gmtime if utc else time.localtime)(seconds))
    except (ValueError, TypeError, OverflowError):
        raise TemplateError(
            f"strftime: {str(second)[:60]!r} is not a number of seconds, or the format is not text"
        ) from None


def comment(text: Any, style: str = "plain", **changes: Any) -> str:
    """The text as a comment. A style and its changes give the parts of the frame and of each line."""
    known = {"newline", "beginning", "prefix", "prefix_count", "decoration", "postfix", "postfix_count", "end"}
    if style not in _COMMENTS:
        raise TemplateError(f"comment: the style is one of {', '.join(_COMMENTS)}, not {str(style)[:40]!r}")
    if changes.keys() - known:
        raise TemplateError(f"comment: has no argument {min(changes.keys() - known)!r}")
    mark = str(changes.get("decoration", _COMMENTS[style]["decoration"]))
    frame = {"prefix": mark.rstrip(), "prefix_count": 1, "postfix": mark.rstrip(), "postfix_count": 1}
    parts = {"newline": "\n", "beginning": "", "end": "", **frame, **_COMMENTS[style], **changes}
    line, decoration = str(parts["newline"]), str(parts["decoration"])
    before, after = int(parts["prefix_count"]), int(parts["postfix_count"])
    check_width(before, after)
    check_replace(require_text("comment", text), line, line + decoration)
    head = f"{parts['beginning']}{line}" if parts["beginning"] else ""
    if parts["prefix"]:
        head += (line if parts["prefix"] == line else f"{parts['prefix']}{line}") * before
    body = f"{decoration}{text.replace(line, line + decoration)}".replace(
        f"{decoration}{line}", f"{decoration.rstrip()}{line}"
    )
    tail = "".join(f"{line}{parts['postfix']}" for _ in range(after))
    return head + body + tail + (f"{line}{parts['end']}" if parts["end"] else "")
