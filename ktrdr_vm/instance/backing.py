"""The template that backs an instance: the one that it was forked from."""

from __future__ import annotations

from ktrdr_vm.host.paths import Home
from ktrdr_vm.plan.facts import TemplateFacts


def open_template(home: Home, key: str, *, thaw: bool = True) -> TemplateFacts:
    """The files of the template with this key."""
    directory = home.templates / key
    return TemplateFacts(key, str(directory), thaw=thaw, has_project=(directory / "project.qcow2").exists())
