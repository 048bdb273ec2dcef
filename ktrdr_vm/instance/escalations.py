"""The escalations of an instance."""

from __future__ import annotations

from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.instance.instance import Instance


def open_store(instance: Instance) -> EscalationStore:
    """The escalations of an instance; UsageError when there is no such instance."""
    instance.require_journal()
    return EscalationStore(instance.paths.escalations, instance.identity.instance_id)
