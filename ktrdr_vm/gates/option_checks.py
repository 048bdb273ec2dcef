"""Options that a module cannot honour: together, without another one, or with their value.

The same checks are made twice: when a playbook is read, for the values that are literal, and before a task runs, when
all templates are rendered. Most conditions are those of the module of ansible-core.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.gates.modules.sources import refuse_source
from ktrdr_vm.gates.specs import MODULES
from ktrdr_vm.host.beneath import check_name

_EXCLUSIVE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "apt": (("deb", "name", "upgrade"),),
    "debug": (("msg", "var"),),
    "lineinfile": (("insertbefore", "insertafter"), ("regexp", "search_string"), ("backrefs", "search_string")),
    "pip": (("name", "requirements"), ("executable", "virtualenv")),
    "wait_for": (("port", "path"),),
}
_ONE_OF: Mapping[str, tuple[str, ...]] = {
    "pip": ("name", "requirements"),
    "service": ("state", "enabled"),
    "systemd": ("state", "enabled", "masked", "daemon_reload", "daemon_reexec"),
}
_URLS = {"uri": "url", "get_url": "url"}
_REDIRECTS = ("all", "no", "none", "safe", "urllib2", "yes", "True", "False")
_AGE, _SIZE = re.compile(r"-?\d+[smhdw]?", re.IGNORECASE), re.compile(r"-?\d+[bkmgt]?", re.IGNORECASE)
_CHECKSUM = re.compile(r"[0-9a-fA-F]+|https?://\S+")
_CLAUSE = r"(?:a|[ugo]*)(?:[-+=][rwxXstugo]*)+"
_MODE = re.compile(rf"(?:0o)?[0-7]{{1,5}}|{_CLAUSE}(?:,{_CLAUSE})*")
_PACKAGE = re.compile(r"[a-zA-Z0-9](?:[^=<>/\s*?\[]*[^=<>/\s*?\[-])?\s*(?:(?:>=|=)\s*\S+)?")
_MAX_REGEX = 10_000


@dataclass(frozen=True)
class Options:
    """The options of a task. `known` are the literal or rendered values, converted to their types; `given` are all
    names, also those whose values are templates."""

    known: Mapping[str, Any]
    given: frozenset[str]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option, the default if it is not given, and None if it is a template."""
        return self.known.get(name) if name in self.given else default

    def lacks(self, *names: str) -> bool:
        return not self.given.intersection(names)


def check_options(module: str, options: Options) -> list[str]:
    """The errors in the options of one task; empty if the module can honour all of them."""
    required = MODULES[module].required
    problems = [f"{module} requires {' or '.join(row)}" for row in required if options.lacks(*row)]
    problems += [
        f"{module} supports only one of {', '.join(row)}"
        for row in (*required, *_EXCLUSIVE.get(module, ()))
        if len(options.known.keys() & set(row)) > 1
    ]
    if (row := _ONE_OF.get(module)) and options.lacks(*row):
        problems.append(f"{module} requires one of {', '.join(row)}")
    problems += _check_values(module, options)
    if check := _CHECKS.get(module):
        problems += check(options)
    return [problem if problem.startswith(module) else f"{module}: {problem}" for problem in problems]


def _check_values(module: str, options: Options) -> Iterator[str]:
    """Options that several modules have."""
    for name in ("mode", "directory_mode"):
        mode = options.known.get(name)
        if isinstance(mode, str) and mode != "preserve" and not _MODE.fullmatch(mode):
            yield f"{name}: {mode[:60]!r} is neither an octal number nor a symbolic mode"
        elif isinstance(mode, int) and not 0 <= mode <= 0o7777:
            yield f"{name}: {mode} is not the mode of a file"
    url = options.known.get(_URLS.get(module, ""))
    if isinstance(url, str) and not url.lower().startswith(("http://", "https://")):
        yield f"url must begin with http:// or https://, not {url[:60]!r}"
    if module in ("copy", "template") and isinstance(options.known.get("src"), str) and not _is_remote(options):
        yield from filter(None, [refuse_source(options.known["src"])])


def _is_remote(options: Options) -> bool:
    """True if a file may be one of the guest; a value that is not known yet may be true."""
    return options.get("remote_src", False) is not False


def _regex(options: Options, *names: str) -> Iterator[str]:
    for name in names:
        value = options.known.get(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (wrong := _refuse_regex(text)):
                yield f"{name}: {text[:60]!r} is no regular expression: {wrong}"


def _refuse_regex(text: str) -> str:
    if len(text) > _MAX_REGEX:
        return f"longer than {_MAX_REGEX} characters"
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def _words(options: Options, *names: str) -> Iterator[str]:
    """Words that a shell could not split."""
    for name in names:
        try:
            shlex.split(str(options.known.get(name, "")))
        except ValueError as error:
            yield f"{name} cannot be split into words: {error}"


def _not_options(program: str, *values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str) and (value.startswith("-") or "\0" in value):
            yield f"{value[:60]!r} would be read as an option of {program}"


def _command(options: Options) -> Iterator[str]:
    if options.known.get("argv") == []:
        yield "no command given"
    yield from _words(options, "cmd")


def _script(options: Options) -> Iterator[str]:
    wrong = list(_words(options, "cmd"))
    yield from wrong
    words = [] if wrong else shlex.split(str(options.known.get("cmd", "")))
    yield from filter(None, map(refuse_source, words[:1]))


def _copy(options: Options) -> Iterator[str]:
    dest = options.known.get("dest")
    if not options.lacks("content") and isinstance(dest, str) and dest.endswith("/"):
        yield "can not use content with a dir as dest"
    if options.known.get("mode") == "preserve" and not _is_remote(options):
        yield "mode: preserve is supported with remote_src only; specify the mode"


def _fetch(options: Options) -> Iterator[str]:
    dest = options.known.get("dest")
    if isinstance(dest, str) and (wrong := check_name(dest)):
        yield (f"cannot fetch to {dest[:200]!r}: {wrong}; a fetch goes to a relative name beneath the run's artifacts")


def _file(options: Options) -> Iterator[str]:
    state = options.known.get("state")
    if options.known.get("recurse") and state not in (None, "directory"):
        yield "recurse option requires state to be 'directory'"
    if not options.lacks("src") and state not in (None, "link", "hard"):
        yield "src option requires state to be 'link' or 'hard'"


def _wait_for(options: Options) -> Iterator[str]:
    state, port = options.known.get("state"), options.known.get("port")
    if not options.lacks("path") and state == "stopped":
        yield "state=stopped should only be used for checking a port in the wait_for module"
    if state in ("stopped", "absent") and not options.lacks("search_regex"):
        yield f"state={state} should not be used in conjunction with search_regex"
    if isinstance(port, int) and not 0 <= port <= 65535:
        yield f"{port} is not a port"
    if options.known.get("path") == "":
        yield "path must not be empty"
    yield from _regex(options, "search_regex")


def _uri(options: Options) -> Iterator[str]:
    method, redirects = options.known.get("method"), options.known.get("follow_redirects")
    if isinstance(method, str) and (not method.isalpha() or len(method) > 20):
        yield f"Parameter 'method' needs to be a single word in uppercase, like GET or POST: {method[:60]!r}"
    if redirects is not None and redirects not in _REDIRECTS:
        yield f"follow_redirects must be one of {', '.join(_REDIRECTS[:6])}, not {str(redirects)[:60]!r}"
    for code in options.known.get("status_code") or ():
        if not isinstance(code, int) and not re.fullmatch(r"\s*[0-9]{1,9}\s*", str(code)):
            yield f"status_code must be a list of numbers, not {str(code)[:40]!r}"


def _git(options: Options) -> Iterator[str]:
    yield from _not_options(
        "git", *(options.known.get(name) for name in ("repo", "dest", "version", "remote", "refspec"))
    )
    if options.lacks("dest") and options.get("clone", True) is True:
        yield "git requires dest unless clone is false"
    depth = options.known.get("depth")
    if isinstance(depth, int) and depth < 0:
        yield f"depth must be a positive number, not {depth}"


def _lineinfile(options: Options) -> Iterator[str]:
    state = options.get("state", "present")
    if state == "present" and options.known.get("backrefs") and options.lacks("regexp"):
        yield "regexp is required with backrefs=true"
    if state == "present" and options.lacks("line"):
        yield "line is required with state=present"
    if state == "absent" and options.lacks("line", "regexp", "search_string"):
        yield "one of line, search_string, or regexp is required with state=absent"
    yield from _regex(options, "regexp", "insertafter", "insertbefore")


def _replace(options: Options) -> Iterator[str]:
    yield from _regex(options, "regexp", "after", "before")


def _find(options: Options) -> Iterator[str]:
    for name, pattern in (("age", _AGE), ("size", _SIZE)):
        if name in options.known and not pattern.fullmatch(str(options.known[name])):
            yield f"failed to process {name}: {str(options.known[name])[:60]!r}"
    limit = options.known.get("limit")
    if isinstance(limit, int) and limit <= 0:
        yield f"limit cannot be {limit} (use None for unlimited)"
    yield from _regex(options, "contains", *(("patterns", "excludes") if options.known.get("use_regex") else ()))


def _get_url(options: Options) -> Iterator[str]:
    checksum = options.known.get("checksum")
    if not checksum:
        return
    algorithm, colon, wanted = str(checksum).partition(":")
    if not colon or algorithm not in hashlib.algorithms_available:
        yield "The checksum parameter has to be in format <algorithm>:<checksum>"
    elif not _CHECKSUM.fullmatch(re.sub(r"\W+", "", wanted) if "://" not in wanted else wanted):
        yield "The checksum format is invalid"


def _apt(options: Options) -> Iterator[str]:
    deb = options.known.get("deb")
    if isinstance(deb, str) and not deb.startswith("/"):
        yield f"deb must be an absolute path in the guest, not {deb[:60]!r}; get_url downloads one"
    if not options.lacks("deb") and options.known.get("state", "present") != "present":
        yield "deb only supports state=present"
    for name in options.known.get("name") or ():
        if not isinstance(name, str) or not _PACKAGE.fullmatch(name.strip()):
            yield f"{str(name)[:60]!r} is not the name of a package; supported: NAME, NAME=VERSION and NAME>=VERSION"


def _pip(options: Options) -> Iterator[str]:
    state = options.known.get("state")
    names: list[Any] = options.known.get("name") or []
    yield from _not_options("pip", *names)
    if not options.lacks("version"):
        if state == "latest":
            yield "version is incompatible with state=latest"
        if len(names) > 1 or options.lacks("name"):
            yield "'version' needs one package in name; write it with each name"
        if len(names) == 1 and re.search(r"[=<>~!]", str(names[0])):
            yield f"'version' conflicts with the version in {str(names[0])[:60]!r}"
    folder, chdir = options.known.get("virtualenv"), options.get("chdir", "")
    if isinstance(folder, str) and chdir == "" and not folder.startswith(("/", "~")):
        yield "virtualenv must be an absolute path, or chdir must be set"
    yield from _words(options, "extra_args", "virtualenv_command")


def _service(options: Options) -> Iterator[str]:
    unit = options.known.get("name")
    if options.lacks("name") and not options.lacks("state", "enabled", "masked"):
        yield "missing parameter(s) required by 'state', 'enabled' or 'masked': name"
    if isinstance(unit, str) and (not unit or unit.startswith("-") or any(one in unit for one in "*?[/\0")):
        yield f"{unit[:60]!r} is not the name of one unit"


def _compose(options: Options) -> Iterator[str]:
    yield from _not_options("docker compose", *(options.known.get("services") or ()), options.known.get("project_name"))


def _set_fact(options: Options) -> Iterator[str]:
    if not options.given - {"cacheable"}:
        yield "No key/value pairs provided, at least one is required for this action to succeed"


def _assert(options: Options) -> Iterator[str]:
    if isinstance(options.known.get("that"), dict):
        yield "`that` must be an expression or a list of them"


_CHECKS: Mapping[str, Callable[[Options], Iterator[str]]] = {
    "apt": _apt,
    "assert": _assert,
    "command": _command,
    "copy": _copy,
    "docker_compose_v2": _compose,
    "fetch": _fetch,
    "file": _file,
    "find": _find,
    "get_url": _get_url,
    "git": _git,
    "lineinfile": _lineinfile,
    "package": _apt,
    "pip": _pip,
    "replace": _replace,
    "script": _script,
    "service": _service,
    "set_fact": _set_fact,
    "systemd": _service,
    "uri": _uri,
    "wait_for": _wait_for,
}
