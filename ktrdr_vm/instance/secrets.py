"""The secrets in a running guest: removed before it is suspended, and when its profile no longer contains them."""

from __future__ import annotations

import time

from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.base import Notify, quiet
from ktrdr_vm.instance.resources.secret import sweep_secrets


def remove_secrets(loaded: LoadedInstance, notify: Notify = quiet) -> list[str]:
    """Remove every secret from the running guest; returns their keys. ProvisionError when one remains or the guest does
    not answer."""
    removed = []
    for resource in reversed(loaded.open_secrets()):
        began = time.monotonic()
        resource.remove()
        notify(resource.kind, resource.name, "removed", time.monotonic() - began)
        removed.append(resource.key)
    sweep_secrets(loaded.connect())
    return removed


def remove_secret(loaded: LoadedInstance, name: str) -> None:
    """Remove one secret from the running guest and from the journal."""
    for resource in loaded.open_secrets():
        if resource.name == name:
            resource.remove()
            loaded.journal.strike(resource.key)
