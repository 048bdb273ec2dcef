"""Pictures of a run: numbers in, bounded SVG out, guest text escaped."""

from __future__ import annotations

from ktrdr_vm.report.measurements import Phase, Sample
from ktrdr_vm.report.model import GateResult
from ktrdr_vm.report.plot import render_timeline, render_usage
from ktrdr_vm.run.usage import measure_gate


def sample(second: int, cpu: float, instance: str = "one", memory: int = 2**30) -> Sample:
    return Sample(f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000Z", instance, cpu, memory, 1000 * second)


def test_processors_are_the_slope_of_cpu_seconds_and_a_new_machine_begins_anew() -> None:
    samples = [sample(second, second * 2.0) for second in range(10)] + [
        sample(10 + second, second * 1.0, "two") for second in range(5)
    ]
    text = str(render_usage(samples))
    assert "CPUs in use: at most 2.0 in 13 s" in text and "memory: at most 1024 MiB" in text


def test_too_few_samples_are_no_picture() -> None:
    assert render_usage([sample(0, 0), sample(1, 1)]) == ""


def test_a_days_samples_are_a_small_picture() -> None:
    assert len(render_usage([sample(second, float(second)) for second in range(3000)])) < 30_000


def test_a_phases_name_does_not_act() -> None:
    text = str(render_timeline([Phase('gate <script>"\x1b[2J', "failed", "2026-01-01T00:00:00Z", 1.0)]))
    assert "<script>" not in text and "&lt;script&gt;" in text and "\x1b" not in text


def test_a_gate_used_what_was_used_in_its_time() -> None:
    gate = GateResult("unit", "passed", sample(5, 0).time, 5.0)
    used = measure_gate(
        gate, tuple(sample(second, second * 1.5, memory=second * 100) for second in range(30)), sample(10, 0).time
    )
    assert used is not None and (used.cpu_s, used.memory_peak, used.disk_growth) == (7.5, 1000, 5000)
    assert measure_gate(gate, (sample(6, 1),), sample(10, 0).time) is None
