"""Phases, resources and gates of a run as they happen, passed to the listener and stored as events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.host.clock import now
from ktrdr_vm.instance.instance import Verb
from ktrdr_vm.report.measurements import Phase
from ktrdr_vm.run.listener import Listener


class Recorder:
    """One for each run, for all its VMs."""

    def __init__(self, directory: RunDirectory, listener: Listener) -> None:
        self.directory = directory
        self.listener = listener
        self.phases: list[Phase] = []
        self.resources: list[dict[str, str]] = []

    @contextmanager
    def phase(self, name: str, *, of: str = "") -> Iterator[None]:
        """A phase of the run with its duration; failed if an exception leaves it. `of` names its VM, except for the
        workload's."""
        name = f"{of}: {name}" if of else name
        self.listener.phase(name)
        self.directory.event("phase_started", phase=name)
        phase = Phase(name, "failed", now(), 0.0)
        began = time.monotonic()
        try:
            yield
            phase = replace(phase, outcome="ok")
        finally:
            phase = replace(phase, duration_s=round(time.monotonic() - began, 3))
            self.phases.append(phase)
            self.directory.event("phase_finished", phase=name, outcome=phase.outcome, duration_s=phase.duration_s)

    def on_resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        self.resources.append({"kind": kind, "name": name, "verb": verb, "seconds": f"{seconds:.3f}"})
        self.directory.event("resource", kind=kind, name=name, verb=verb, duration_s=round(seconds, 3))
        self.listener.resource(kind, name, verb, seconds)

    def on_gate(self, event: Mapping[str, Any]) -> None:
        self.directory.relay(event)
        self.listener.gate_event(event)
