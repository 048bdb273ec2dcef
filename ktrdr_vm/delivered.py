"""The secrets that lie in a running guest: read back for masking, taken out before a rest, dropped when a profile names them no more."""

from __future__ import annotations

import time

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.instance import Instance
from ktrdr_vm.resources.base import Notify, quiet
from ktrdr_vm.resources.secret import sweep_secrets


def read_secrets(instance: Instance) -> list[bytes]:
    """The values that were delivered, so that they can be masked. A brokered one is not there."""
    secrets = instance.plan.profile.delivered
    found = [instance.connect().run(["cat", "--", secret.path], become=True, timeout=30) for secret in secrets]
    return [done.stdout for done in found if done.exit_code == 0]


def take_secrets(instance: Instance, notify: Notify = quiet) -> list[str]:
    """Take every secret out of the running guest; their keys. ProvisionError when one is still there, or nobody answers."""
    taken = []
    for resource in reversed(instance.open_resources()):
        if resource.kind != "secret":
            continue
        began = time.monotonic()
        resource.remove()
        if resource.exists():
            raise ProvisionError(
                f"the secret {resource.name} is still in the guest", where=instance.identity.instance_id, hint="remove it in the guest"
            )
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
