"""ktrdr-vm: disposable virtual machines for coding agents. The interface for programs is `ktrdr_vm.api`, whose names
are exported here."""

from __future__ import annotations

# As in `typing`, whose import would be a tenth of the start of `ktrdr-vm proxy`.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from ktrdr_vm.api import (
        Instance,
        LivingInstance,
        Result,
        apply,
        enter_world,
        list_instances,
        make_plan,
        read_report,
    )

__all__ = ["Instance", "LivingInstance", "Result", "apply", "enter_world", "list_instances", "make_plan", "read_report"]


def __getattr__(name: str) -> object:
    """Imports `api` on first use, because the command line rarely needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ktrdr_vm import api

    found: object = getattr(api, name)
    return found
