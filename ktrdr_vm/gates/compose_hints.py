"""Causes of a failed task that lie in the guest or in its image and not in the stack: what Compose and containers say
about them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Compose 2.26 says `Additional property x is not allowed`, later versions `additional properties 'x', 'y' not allowed`.
# For a format of `env_file` that it does not know, it has words of its own.
_UNKNOWN = re.compile(
    r"[Aa]dditional propert(?:y (\S{1,100}) is not allowed|ies ([^\n]{1,200}?) not allowed)|unsupported (env_file"
    r" format \S{1,100})"
)
_NO_FILE = re.compile(r"no configuration file provided")
_EXTERNAL = re.compile(
    r"(?:(network|volume) \"?([^\s\"]{1,200})\"? declared as external|external (network|volume) \"?([^\s\"]{1,200})\"?"
    r" not found)"
)
_NO_DOCKER = re.compile(
    r"(?:^|[\s:])docker: (?:command )?not found|No such file or directory: b?'docker'", re.MULTILINE
)
_WITHOUT_DOCKER = ("the image has no Docker: use the recipe debian-13-docker, or an image with docker and compose",)
_DENIED = re.compile(r"permission denied|EACCES|read-only file system", re.IGNORECASE)
_MOST = 5
# What the guest is asked: the version of Compose, and the names of files that look like compose files.
_VERSION = "docker compose version --short"
_FILES = "ls | grep -iE '^(docker-)?compose[.-].*[.]ya?ml$|[.-]compose[.]ya?ml$'"

Ask = Callable[[str], str]
"""Runs a shell line in the guest and returns its output, which is empty if it failed."""


def find_hints(
    said: str, folder: str, ask: Ask, containers: Iterable[tuple[Mapping[str, Any], str]] = ()
) -> tuple[str, ...]:
    """The causes that the output of a failed task names, each with what to do. `containers` are those that are ill,
    with their last lines.

    `folder` is where the task ran; empty if it is not known.
    """
    return (
        *(_WITHOUT_DOCKER if _NO_DOCKER.search(said) else ()),
        *_explain_version(said, ask),
        *_explain_file(said, folder, ask),
        *(
            f"{kind} {name} is external and does not exist in the guest: {_CREATE[kind]}"
            for kind, name in _find_external(said)
        ),
        *_explain_folders(containers),
    )[:_MOST]


_CREATE = {
    kind: (
        f"name it in the variable external_{kind}s of the gate, or create it in a task before (`docker {kind} create`)"
    )
    for kind in ("network", "volume")
}


def _explain_version(said: str, ask: Ask) -> Iterable[str]:
    found = _UNKNOWN.search(said)
    if found is None:
        return
    version = re.fullmatch(r"v?([0-9][\w.+~-]{0,60})", ask(_VERSION).strip())
    known = (
        f"the image has Compose {version[1]}, which does not know"
        if version
        else "the Compose of the image does not know"
    )
    yield f"{known} {found[1] or found[2] or found[3]}: correct the name, or use an image with a newer Compose"


def _explain_file(said: str, folder: str, ask: Ask) -> Iterable[str]:
    if not _NO_FILE.search(said):
        return
    place = f"cd -- {shlex.quote(folder)} && " if folder else ""
    names = [name for name in ask(f"{place}{_FILES}").split("\n") if re.fullmatch(r"[\w.+-]{1,100}", name)]
    if names:
        yield (
            f"there is no compose.yaml, but {', '.join(names[:_MOST])}: set `environment: {{COMPOSE_FILE: {names[0]}}}`"
            " in the profile"
        )


def _find_external(said: str) -> list[tuple[str, str]]:
    found = ((one[1] or one[3], one[2] or one[4]) for one in _EXTERNAL.finditer(said))
    return list(dict.fromkeys(found))[:_MOST]


def _explain_folders(containers: Iterable[tuple[Mapping[str, Any], str]]) -> Iterable[str]:
    """Folders of the guest that a container may not write to: Docker creates a missing source of a bind mount, owned by
    root."""
    for container, log in containers:
        refused = [line for line in log.splitlines() if _DENIED.search(line)]
        for source, target in _list_binds(container):
            if any(target in line for line in refused):
                yield (
                    f"container {str(container.get('Name', '?')).lstrip('/')} may not write to {target}, which is the"
                    f" folder {source} of the guest: Docker creates a missing folder as root's. Commit it with a"
                    " .gitkeep, or set its owner in a task before"
                )


def _list_binds(container: Mapping[str, Any]) -> list[tuple[str, str]]:
    mounts = container.get("Mounts")
    found = [one for one in mounts if isinstance(one, dict)] if isinstance(mounts, list) else []
    return [(str(one.get("Source")), str(one.get("Destination"))) for one in found if one.get("Type") == "bind"]
