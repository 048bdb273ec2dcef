"""A run is sent to the collector when its instance is free again, and what becomes of it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_endings import destroyed, make_run

from ktrdr_vm.evidence import otel_export
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.loaded import hold_lock
from ktrdr_vm.report.model import GateOutcome, GateResult
from ktrdr_vm.run.vm import Stage

__all__ = ["destroyed"]


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("failed", 1)])
def test_it_is_sent_after_its_instance_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destroyed: list[str], outcome: GateOutcome, code: int
) -> None:
    sent: list[tuple[Path, Mapping[str, str]]] = []

    def report(run: Path, identity: Mapping[str, str], _env: Any, _policy: Any, note: Callable[[str], None]) -> None:
        assert destroyed == ["one"] and (run / "report.json").exists()
        with hold_lock(Home(tmp_path), parse_instance_id("one")):
            pass  # an error if the run still held it
        sent.append((run, identity))
        note("the telemetry of this run is incomplete: the collector did not answer within 5 s")

    monkeypatch.setattr(otel_export, "report_run", report)
    monkeypatch.setattr(Stage, "provision", lambda *_: None)
    gate = GateResult("unit", outcome, "2026-01-01T00:00:00Z", 1.0)
    monkeypatch.setattr(Stage, "run_gates", lambda *_, **__: (gate,))
    report_made = make_run(tmp_path).execute()
    assert (report_made.outcome, report_made.exit_code) == (outcome, code)
    [(run, identity)] = sent
    assert run == Home(tmp_path).run("one", report_made.run_id)
    assert identity == {
        "service.namespace": "one",
        "ktrdr.instance_id": "one",
        "ktrdr.environment": "sandbox",
        "ktrdr.run_id": report_made.run_id,
    }
