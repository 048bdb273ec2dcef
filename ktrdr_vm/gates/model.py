"""A playbook as frozen data. `playbook` parses it, `runner` runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    no_log: Any = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The defaults of a role: variables that all others win over."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The `vars` of an include, which win over results and `set_fact`, as in Ansible."""
    role: str = ""
    """The name of a role, if these keywords are those of a role."""


@dataclass(frozen=True)
class LoopControl:
    """How a loop names its items. `label` and `pause` may be templates."""

    loop_var: str = "item"
    index_var: str = ""
    label: Any = None
    pause: Any = None


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
    loop_kind: str = ""
    """`list`, `items` or `dict` for `with_list` and so on: how the list of items is made of the value."""
    loop_control: LoopControl = LoopControl()
    until: tuple[Any, ...] | None = None
    retries: Any = None
    delay: Any = None
    failed_when: tuple[Any, ...] | None = None
    changed_when: tuple[Any, ...] | None = None
    included: tuple[Node, ...] = ()
    """The tasks of the file or the role that an `include_tasks` or `include_role` names."""
    notify: tuple[Any, ...] = ()
    notifies_names: bool = False
    """True if `notify` is a list, whose templates give one name each; a template alone may give a list of names."""
    listen: tuple[str, ...] = ()
    """The topics of a handler, in addition to its name."""
    is_nameless: bool = False
    """True for a handler whose `name` is only that of its module, which nothing can notify."""

    @property
    def is_include(self) -> bool:
        return self.module in ("include_tasks", "include_role")

    @property
    def has_row(self) -> bool:
        """False for tasks that the report does not list."""
        return self.module != "meta"


@dataclass(frozen=True)
class Block:
    """Tasks that share keywords, with `rescue` and `always`."""

    name: str
    where: str
    common: Common
    block: tuple[Node, ...]
    rescue: tuple[Node, ...] = ()
    always: tuple[Node, ...] = ()


def find_names(handler: Task) -> tuple[str, ...]:
    """The names of a handler: its own, and that with its role."""
    if handler.is_nameless:
        return ()
    return (handler.name, f"{handler.common.role} : {handler.name}") if handler.common.role else (handler.name,)


Node: TypeAlias = "Task | Block"


@dataclass(frozen=True)
class Play:
    name: str
    where: str
    common: Common
    tasks: tuple[Node, ...]
    handlers: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Playbook:
    """A parsed playbook. `name` is the file's name without `.yaml`, `source` the file as the user named it."""

    name: str
    source: str
    plays: tuple[Play, ...]
    folder: str = ""
    """The absolute path of its folder, for `playbook_dir`; empty if it was not read from a file."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of the playbook, of its includes, and of the files and folders that its tasks send, by the name from
    its folder; a folder ends in `/`. Empty where a task will search a file and there was none."""

    @property
    def path(self) -> Path:
        return Path(self.folder, Path(self.source).name)

    @property
    def digest(self) -> str:
        """sha256 over all that was read, in the order of the names."""
        digest = hashlib.sha256()
        for name, found in sorted(self.files.items()):
            if found:
                digest.update(f"{name}\0{found}\n".encode())
        return digest.hexdigest()
