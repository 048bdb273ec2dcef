"""The secrets in a running guest: removed before it is suspended, and when nobody names them any more."""

from __future__ import annotations

import time

from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.base import Notify, quiet
from ktrdr_vm.instance.resources.secret import sweep_secrets


def take_secrets(instance: Instance, notify: Notify = quiet) -> list[str]:
    """Take every secret out of the running guest; their keys. ProvisionError when one is still there, or nobody answers."""
    taken = []
    for resource in reversed(instance.open_resources()):
        if resource.kind != "secret":
            continue
        began = time.monotonic()
        resource.remove()
        notify(resource.kind, resource.name, "removed", time.monotonic() - began)
        taken.append(resource.key)
    sweep_secrets(instance.connect())
    return taken


def drop_secret(instance: Instance, name: str) -> None:
    """Take one secret out of the running guest, and out of the journal."""
    journal = instance.require_journal()
    for resource in instance.open_resources():
        if resource.kind == "secret" and resource.name == name:
            resource.remove()
            journal.strike(resource.key)
