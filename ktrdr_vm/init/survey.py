"""What a repository shows about itself, each fact with the file that it comes from. Reads files; starts no program."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.init.commands import Command, Toolchain, find_commands, find_toolchains
from ktrdr_vm.init.compose import DEFAULT_NAMES, ComposeFile, is_compose_name, parse_compose
from ktrdr_vm.init.files import Files

_ENV_EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "env.example")
# Within one line: with `\s`, which also matches line ends, a file of blank lines takes minutes.
_VARIABLE = re.compile(
    r"^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]{0,60})[ \t]*=[ \t]*[\"']?([^\s\"'#]*)", re.MULTILINE
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE", re.IGNORECASE)
_DOCKERFILE = re.compile(r"(Docker|Container)file([._-].*)?|.*\.[Dd]ockerfile")
_FROM = re.compile(r"^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*([A-Za-z0-9._:/@-]{1,300})", re.MULTILINE | re.IGNORECASE)
_REMOTE = re.compile(r"^[ \t]*url[ \t]*=[ \t]*(?:[a-z+]+://)?(?:[^@\s/]*@)?([A-Za-z0-9.-]+)[:/]", re.MULTILINE)
# A string, which is kept, or a comment. What has no end reaches to the end of the text, so that it is searched once.
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*+"?)|//[^\n]*|/\*(?:[^*]|\*(?!/))*+(?:\*/)?', re.DOTALL)
_MOST = 20


@dataclass(frozen=True)
class Survey:
    """The facts. Names of files are relative to the top of the repository."""

    name: str
    composes: tuple[ComposeFile, ...] = ()
    """All compose files with services, the most likely one first."""
    images: tuple[tuple[str, str], ...] = ()
    """Images that are pulled, each with the file that names it."""
    commands: tuple[Command, ...] = ()
    toolchains: tuple[Toolchain, ...] = ()
    env_example: str = ""
    secrets: tuple[str, ...] = ()
    """Names of variables in the example of `.env` that look like secrets."""
    remotes: tuple[str, ...] = ()
    devcontainer: str = ""
    setup: str = ""
    """What the devcontainer runs after its creation."""


def survey_repository(top: Path) -> Survey:
    """The facts of the repository whose top folder is `top`."""
    files = Files(top)
    devcontainer, definition = _read_devcontainer(files)
    composes = _find_composes(files)
    example, variables = _read_example(files, composes[0].folder if composes else "")
    setup = definition.get("postCreateCommand")
    return Survey(
        name=_make_name(top.name),
        composes=composes,
        images=_find_images(files, composes[:1]),
        commands=find_commands(files),
        toolchains=find_toolchains(files),
        env_example=example,
        secrets=tuple(name for name in variables if _SECRET.search(name))[:_MOST],
        remotes=_find_remotes(top),
        devcontainer=devcontainer,
        setup=setup if isinstance(setup, str) else "",
    )


def _make_name(folder: str) -> str:
    """The name of a folder as that of a profile."""
    return re.sub(r"[^a-z0-9_.-]+", "-", folder.lower()).strip("-._")[:63] or "project"


def _find_composes(files: Files) -> tuple[ComposeFile, ...]:
    names = [name for name in files.names if is_compose_name(name)][:_MOST]
    found = [parse_compose(name, files.read(name), _read_example(files, posixpath.dirname(name))[1]) for name in names]
    # Overrides and files of another environment change the main file, so they come last.
    return tuple(sorted((one for one in found if one is not None and one.services), key=_rank))


def _read_example(files: Files, folder: str) -> tuple[str, dict[str, str]]:
    """The example of `.env` for a compose file in `folder`, and its variables. `.env` itself has secrets, and is not
    read."""
    folders = (f"{folder}/", "") if folder else ("",)
    example = files.find(*(f"{one}{name}" for one in folders for name in _ENV_EXAMPLES))
    return example, dict(_VARIABLE.findall(files.read(example))) if example else {}


def _rank(compose: ComposeFile) -> tuple[bool, int, str]:
    last = compose.name.rsplit("/", 1)[-1]
    return last not in DEFAULT_NAMES, compose.name.count("/"), compose.name


def _find_images(files: Files, composes: Iterable[ComposeFile]) -> tuple[tuple[str, str], ...]:
    """Of the compose file that is used, and of every Dockerfile, without the names of build stages."""
    found = {image: compose.name for compose in composes for image in compose.images}
    for name in (one for one in files.names if _DOCKERFILE.fullmatch(one.rsplit("/", 1)[-1])):
        text = files.read(name)
        stages = {one.lower() for one in re.findall(r"\bAS\s+(\S+)", text, re.IGNORECASE)}
        for image in _FROM.findall(text):
            if image.lower() not in (*stages, "scratch"):
                found.setdefault(image, name)
    return tuple(found.items())[:_MOST]


def _find_remotes(top: Path) -> tuple[str, ...]:
    """The hosts of the remotes, from the text of the configuration of Git; credentials in their URLs are not read."""
    return tuple(dict.fromkeys(host.lower() for host in _REMOTE.findall(Files(top).read(".git/config"))))[:_MOST]


def _read_devcontainer(files: Files) -> tuple[str, dict[str, Any]]:
    name = files.find(".devcontainer/devcontainer.json", ".devcontainer.json", "devcontainer.json")
    text = files.read(name) if name else ""
    # JSON with comments and commas at the end of lists, as devcontainers are written.
    plain = _COMMENT.sub(lambda found: found[1] or "", text)
    plain = re.sub(r",(\s*[}\]])", r"\1", plain)
    try:
        data = json.loads(plain or "{}")
    except (ValueError, RecursionError):
        data = {}
    return name, data if isinstance(data, dict) else {}
