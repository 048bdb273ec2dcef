"""Options of a run in addition to its profile, and the interface that is notified of its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.instance.instance import Verb

Keep = Literal["never", "on-failure", "always"]


class Listener:
    """Notified of the progress of a run. This one is silent; that of the terminal is in `cli`."""

    def started(self, directory: Path, mask: Callable[[str], str]) -> None:
        """The run directory exists. `mask` removes the values of secrets from a text, also of those that are delivered
        later."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        """A resource was created, found or removed."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def gate_event(self, event: Mapping[str, Any]) -> None:
        """An event of the playbook runner."""

    def output(self, data: bytes) -> None:
        """Output of the workload, masked."""


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    keep: Keep = "never"
    cold: bool = False
    restart: bool = False
    """True if an interactive instance may be restarted to apply changes of its profile."""
    source: str = ""
    """The snapshot to start from, as ID@NAME."""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Values that came with the run, by the name of the secret, and are used instead of its source."""
