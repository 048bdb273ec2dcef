"""The variables of one gate: facts and results so far, and the order in which Ansible searches them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ktrdr_vm.errors import HostError
from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.model import Common, Playbook
from ktrdr_vm.gates.template_checks import LOOKUPS
from ktrdr_vm.gates.templating import Scope
from ktrdr_vm.host.beneath import Place, UnsafePathError, open_folder, split_name
from ktrdr_vm.host.owner import find_owner, reading_as

# The version of ansible-core with which the results are compared.
_VERSION = {"full": "2.19.0", "major": 2, "minor": 19, "revision": 0, "string": "2.19.0"}


class Variables:
    """Results, `set_fact` and facts of the guest. `scope` gives the variables of one task."""

    def __init__(self, playbook: Playbook, context: GateContext) -> None:
        self.results: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._context = context
        self._magic = {
            "ansible_check_mode": context.check, "ansible_diff_mode": False, "ansible_managed": "Ansible managed",
            "ansible_version": _VERSION, "inventory_hostname": "guest", "inventory_hostname_short": "guest",
            **{name: dict(context.environment) for name in LOOKUPS},
        }  # fmt: skip
        self._folder = playbook.folder
        if playbook.folder:
            self._magic["playbook_dir"] = playbook.folder

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Facts of the guest, which `ansible_facts` contains and which have variables of their own."""
        self._facts["ansible_facts"] = {**self._facts.get("ansible_facts", {}), **facts}
        self._facts |= {f"ansible_{name}": value for name, value in facts.items()}

    def scope(self, commons: tuple[Common, ...], item: Mapping[str, Any]) -> Scope:
        """Nearest first: extra variables, item, `vars` of includes, results, then task, blocks, play, facts of the
        guest, defaults of roles."""
        layers: list[tuple[Mapping[str, Any], bool]] = [(self._context.extra_vars, False), (item, False)]
        layers += [(common.params, True) for common in reversed(commons) if common.params]
        layers.append((self.results, False))
        layers += [(common.vars, True) for common in reversed(commons)]
        role = find_role(commons)
        about_role = (
            {"role_name": role, "ansible_role_name": role, "role_path": f"{self._folder}/roles/{role}"} if role else {}
        )
        layers += [(self._facts, False), (about_role, False), (self._magic, False)]
        layers += [(common.defaults, True) for common in reversed(commons) if common.defaults]
        return Scope(tuple(layers), self._probe)

    def _probe(self, path: str) -> str:
        """The kind of a path of the host, which must be beneath the folder of the playbook or the workspace."""
        roots = [root if isinstance(root, Place) else Place(root) for root in self._context.roots]
        for root in roots:
            top = str(root.path)
            if (path == top or path.startswith(f"{top}/")) and ".." not in path.split("/"):
                return _find_kind(root, path[len(top) :].strip("/"))
        raise TemplateError(
            f"{path[:200]!r} is not beneath the playbook's folder or the workspace; tests of files are for files of the"
            " playbook: write `playbook_dir ~ '/…'`, or use the module stat for a file of the guest"
        )


def find_role(commons: Iterable[Common]) -> str:
    """The innermost role, or an empty text."""
    return next((common.role for common in reversed(tuple(commons)) if common.role), "")


def _find_kind(root: Place, name: str) -> str:
    """`file`, `directory`, `other` or nothing. A link is not followed: what it leads to may be anywhere."""
    if not name:
        return "directory"
    *folders, last = split_name(name)
    try:
        with reading_as(find_owner()), open_folder(root, folders) as descriptor:
            found = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnsafePathError, HostError) as error:
        raise TemplateError(f"{name[:200]!r} cannot be read: {error}") from None
    kinds = {0o100000: "file", 0o040000: "directory", 0o120000: "link other"}
    return kinds.get(found.st_mode & 0o170000, "other")
