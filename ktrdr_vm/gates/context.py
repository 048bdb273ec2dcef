"""The context of a gate: everything that is neither in the playbook nor in the guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.gates.renderer import Renderer
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.clock import now


def _ignore(_event: Mapping[str, Any]) -> None:
    return None


def _ignore_result(_name: str, _result: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class GateContext:
    """Settings of one gate. Times in seconds; tests can replace the clock."""

    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    """Variables that win over all others. They are values, never templates."""
    roots: tuple[Path | Place, ...] = ()
    """Folders of the host from which `copy`, `template` and `script` may send: that of the playbook, then the
    workspace."""
    artifacts: Path | None = None
    """The folder for `fetch`, which only this user can change until the run has ended."""
    fetched: set[str] = field(default_factory=set)
    """Names beneath `artifacts` that tasks of this gate have fetched; `fetch` adds to them, up to its limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The environment of every task, such as COMPOSE_PROJECT_NAME; `environment` of a task overrides it."""
    mask: Callable[[str], str] = str
    """Masks secrets in a text. Applied to all results of the gate."""
    on_event: Callable[[Mapping[str, Any]], None] = _ignore
    """Called with `gate_started`, `task_started`, `task_retried`, `task_finished`, `gate_finished`: for progress and
    events.jsonl."""
    on_result: Callable[[str, Mapping[str, Any]], None] = _ignore_result
    """Called with the name of each finished task and its registered result, not masked."""
    proceed: Callable[[], None] | None = None
    """Called before every attempt and each second of a wait; raises to end the gate."""
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    start_at_task: str = ""
    check: bool = False
    task_timeout: float = 1800.0
    gate_timeout: float = 4 * 3600.0
    renderer: Renderer | None = None
    """The renderer of templates, instead of a process for this gate."""
    now: Callable[[], str] = now
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait(self, seconds: float) -> None:
        """Wait, and call `proceed`, which can raise."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            if self.proceed is not None:
                self.proceed()
            self.sleep(min(left, 1.0))
