"""ktrdr-vm: disposable virtual machines for coding agents. What programs use is in `ktrdr_vm.api`, and named here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrdr_vm.api import Instance, LivingInstance, Result, apply, list_instances, make_plan, read_report

__all__ = ["Instance", "LivingInstance", "Result", "apply", "list_instances", "make_plan", "read_report"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: the command line needs little of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ktrdr_vm import api

    return getattr(api, name)
