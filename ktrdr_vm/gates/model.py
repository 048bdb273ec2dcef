"""A playbook as frozen data. `playbook` parses it, `runner` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# Maximal bytes of a file that a task sends.
MAX_SENT = 64 * 1024 * 1024


@dataclass(frozen=True)
class Common:
    """The keywords of plays, blocks and tasks."""

    when: tuple[Any, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    environment: Any = None
    become: Any = None
    tags: tuple[str, ...] = ()
    ignore_errors: Any = None
    timeout: Any = None


@dataclass(frozen=True)
class Task:
    """One task as written. Values may be templates. `where` is file:line:column."""

    name: str
    module: str
    arguments: Mapping[str, Any]
    where: str
    common: Common = Common()
    register: str = ""
    loop: Any = None
    until: tuple[Any, ...] | None = None
    retries: Any = None
    delay: Any = None
    failed_when: tuple[Any, ...] | None = None
    changed_when: tuple[Any, ...] | None = None
    included: tuple[Node, ...] = ()
    """The tasks of the file that an `include_tasks` names."""


@dataclass(frozen=True)
class Block:
    """Tasks that share keywords, with `rescue` and `always`."""

    name: str
    where: str
    common: Common
    block: tuple[Node, ...]
    rescue: tuple[Node, ...] = ()
    always: tuple[Node, ...] = ()


Node: TypeAlias = "Task | Block"


@dataclass(frozen=True)
class Play:
    name: str
    where: str
    common: Common
    tasks: tuple[Node, ...]


@dataclass(frozen=True)
class Playbook:
    """A parsed playbook. `name` is the file's name without `.yaml`, `source` the file as the user named it."""

    name: str
    source: str
    plays: tuple[Play, ...]
