"""The template that backs an instance: the one that it was forked from."""

from __future__ import annotations

import json
from pathlib import Path

from ktrdr_vm.host.paths import Home
from ktrdr_vm.plan.domain_memory import maps_readonly
from ktrdr_vm.plan.facts import TemplateFacts


def open_template(home: Home, key: str, *, thaw: bool = True) -> TemplateFacts:
    """The files of the template with this key."""
    directory = home.templates / key
    has_project = (directory / "project.qcow2").exists()
    return TemplateFacts(key, str(directory), thaw=thaw, has_project=has_project, readonly=_maps_readonly(directory))


def _maps_readonly(directory: Path) -> bool:
    """By the QEMU that the template was made with: one of another version is not forked from."""
    try:
        return maps_readonly(str(json.loads((directory / "manifest.json").read_bytes())["qemu"]))
    except (OSError, ValueError, KeyError):
        return False
