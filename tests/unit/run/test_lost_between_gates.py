"""A VM that ends between two gates is a gate with the outcome `error`, as one that ends in the middle of a gate."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.instance.diagnosis import ENDED
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.run.vm import Stage
from tests.fakes.libvirt import FakeLibvirt


def test_the_gate_says_that_the_vm_has_ended_and_the_next_is_skipped(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    target: Any = SimpleNamespace(
        libvirt=FakeLibvirt(),
        identity=SimpleNamespace(domain="ktrdr-lost"),
        is_running=lambda: False,
        paths=SimpleNamespace(console=console),
    )
    loaded: Any = SimpleNamespace(
        target=target,
        instance_id="lost",
        paths=target.paths,
        require_closed=lambda: None,
        guard=SimpleNamespace(flush=lambda: None),
    )

    def connect() -> NoReturn:
        LoadedInstance._require_reachable(loaded)
        raise AssertionError("a VM that has ended was called reachable")

    stage: Any = SimpleNamespace(
        loaded=loaded,
        instance=SimpleNamespace(target=target),
        connect=connect,
        sampler=SimpleNamespace(samples=()),
        harvest=SimpleNamespace(add_fetched=lambda *_: None),
        _context=SimpleNamespace(mask=lambda text: text),
        _name="base",
        _phase=lambda *_: contextlib.nullcontext(),
    )
    stage._run_gate = functools.partial(Stage._run_gate, stage)
    playbooks = [Playbook(name, f"/w/{name}.yaml", (), folder="/w") for name in ("second", "third")]
    second, third = Stage.run_gates(stage, playbooks, Any)  # type: ignore[arg-type]
    assert (second.outcome, third.outcome) == ("error", "skipped")
    assert second.message == f"{ENDED} (its console says why: {console})"
    assert third.message == "an earlier gate failed"
