"""The telemetry of an instance in the metrics: its records by what became of them, of all lines of the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance.inventory import Found
from ktrdr_vm.monitoring import metrics as module


def test_records_are_added_up_by_their_fate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    ledger = home.instance("one").ledger
    ledger.parent.mkdir(parents=True)
    common = {"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "telemetry", "verdict": "note"}
    rows = [{"accepted": 5, "refused": 2, "refused_rate": 1}, {"accepted": 1, "sent": 4, "dropped": 2}]
    ledger.write_text("".join(json.dumps(common | row) + "\n" for row in rows))
    monkeypatch.setattr(module, "measure_disk", lambda _: 0)
    made = module.Metrics()
    module._add_instance(made, home, Found("one", mode="sandbox", state="running"))
    lines = [line for line in generate_latest(made.registry).decode().splitlines() if "telemetry_records{" in line]
    assert sorted(lines) == [
        f'ktrdr_vm_telemetry_records{{environment="sandbox",fate="{fate}",instance_id="one"}} {count}'
        for fate, count in (("accepted", 6.0), ("dropped", 2.0), ("sent", 4.0))
    ]
