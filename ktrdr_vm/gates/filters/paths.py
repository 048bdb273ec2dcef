"""Filters of paths, as text, and of URLs. They read nothing from the host."""

from __future__ import annotations

import ntpath
import posixpath
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.filters.text import require_text

_URL_PARTS = ("fragment", "hostname", "netloc", "password", "path", "port", "query", "scheme", "username")


def _of_text(name: str, call: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda path: call(require_text(name, path))


def path_join(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list | tuple) or not parts:
        raise TemplateError("path_join: requires text or a list that is not empty")
    return posixpath.join(*(require_text("path_join", part) for part in parts))


def commonpath(paths: Any) -> str:
    if not isinstance(paths, list | tuple):
        raise TemplateError("commonpath: requires a list")
    return str(posixpath.commonpath(paths))


def relpath(path: Any, start: Any) -> str:
    """The path from `start`. Relative paths would depend on the folder in which the program was started."""
    if not require_text("relpath", path).startswith("/") or not require_text("relpath", start).startswith("/"):
        raise TemplateError("relpath: requires two absolute paths")
    return str(posixpath.relpath(path, start))


def urlsplit(url: Any, query: str = "", alias: str = "urlsplit") -> Any:
    found = urllib.parse.urlsplit(require_text("urlsplit", url))
    parts: Mapping[str, Any] = {name: getattr(found, name) for name in _URL_PARTS}
    if not query:
        return dict(parts)
    if query not in parts:
        raise TemplateError(f"{alias}: unknown URL component: {str(query)[:40]}")
    return parts[query]


PATHS: dict[str, Callable[..., Any]] = {
    "basename": _of_text("basename", posixpath.basename),
    "commonpath": commonpath,
    "dirname": _of_text("dirname", posixpath.dirname),
    "normpath": _of_text("normpath", posixpath.normpath),
    "path_join": path_join,
    "relpath": relpath,
    "splitext": _of_text("splitext", posixpath.splitext),
    "urldecode": lambda text: urllib.parse.unquote_plus(text),
    "urlsplit": urlsplit,
    "win_basename": _of_text("win_basename", ntpath.basename),
    "win_dirname": _of_text("win_dirname", ntpath.dirname),
    "win_splitdrive": _of_text("win_splitdrive", ntpath.splitdrive),
}
