"""What a run is asked besides its profile, and who is told what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ktrdr_vm.instance.instance import Verb

Keep = Literal["never", "on-failure", "always"]


class Listener:
    """Told of everything while it happens. This one is silent; the terminal's is in `cli`."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        """A resource was made, found, removed."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def gate_event(self, event: Mapping[str, Any]) -> None:
        """An event of a gate's runner."""

    def output(self, data: bytes) -> None:
        """What the workload prints, as it is."""


@dataclass(frozen=True)
class Options:
    """What the command line adds to a profile."""

    keep: Keep = "never"
    cold: bool = False
    restart: bool = False
    """True if an interactive instance may be restarted to apply changes of its profile."""
    source: str = ""
    """The snapshot to begin from, as ID@NAME."""
