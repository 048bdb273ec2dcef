"""Resource usage of a VM during a run, as observed by the host: CPU time, memory and disk, every few seconds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.report.measurements import Sample, Usage

if TYPE_CHECKING:
    from ktrdr_vm.report.model import GateResult

PERIOD_S = 2.0
# A long run keeps every second sample, then every second of those.
MAX_SAMPLES = 2000


class Sampler:
    """Samples one domain in a thread, from `start` to `stop`. A domain that does not exist has no sample, and is no
    error.

    `ended` is called once when the sampled VM has ended, so that no wait for it lasts until its time limit.
    """

    def __init__(
        self,
        libvirt: Libvirt,
        domain: str,
        instance_id: str,
        period: float = PERIOD_S,
        *,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._libvirt = libvirt
        self._domain = domain
        self._instance_id = instance_id
        self._period = period
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: list[Sample] = []
        self._tell_end = ended

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(self._samples)

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="sampler")
            self._thread.start()

    def stop(self) -> None:
        """No sample is taken after this returns."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            with contextlib.suppress(KtrdrError):
                used = self._libvirt.measure(self._domain)
                if used is not None:
                    self._samples.append(Sample(now(), self._instance_id, *used))
                elif self._samples and self._libvirt.find(self._domain) is None:
                    self._tell_end()
                    return
            if len(self._samples) >= MAX_SAMPLES:
                self._samples = self._samples[::2]
                self._period *= 2
            self._ended.wait(max(0.1, self._period - (time.monotonic() - began)))


def measure_gate(gate: GateResult, samples: tuple[Sample, ...], ended_at: str) -> Usage | None:
    """The usage from the begin of the gate to `ended_at`; None without two samples in that time."""
    during = [one for one in samples if gate.started_at <= one.time <= ended_at]
    if len(during) < 2:
        return None
    first, last = during[0], during[-1]
    return Usage(
        cpu_s=round(last.cpu_s - first.cpu_s, 2),
        memory_peak=max(one.memory for one in during),
        disk_growth=last.disk - first.disk,
    )
