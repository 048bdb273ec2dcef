"""The workload: what an agent or a script does between the first gate and the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

from ktrdr_vm.guest.protocol import Guest, GuestTimeout
from ktrdr_vm.host.clock import now
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.model import WorkloadResult

# What matters of a long run is its end.
KEPT_OUTPUT = 64 * 1024


def run_workload(
    guest: Guest,
    workload: Workload,
    *,
    environment: Mapping[str, str],
    chdir: str | None,
    mask: Callable[[str], str],
    on_output: Callable[[bytes], None],
) -> WorkloadResult:
    """Run it as the guest's unprivileged user until it ends or its time is over. A failure is a result, not an error."""
    started_at, began = now(), time.monotonic()
    tail, pending = bytearray(), bytearray()

    def hear(data: bytes) -> None:
        tail.extend(data)
        # More than is kept, so that a secret at the cut is still whole when it is masked.
        del tail[: -2 * KEPT_OUTPUT]
        pending.extend(data)
        show(pending.rfind(b"\n") + 1 or (len(pending) if len(pending) > KEPT_OUTPUT else 0))

    def show(count: int) -> None:
        """Whole lines only: a secret that arrives in two pieces is masked as well."""
        if count:
            on_output(mask(pending[:count].decode("utf-8", "replace")).encode())
            del pending[:count]

    code: int | None = None
    try:
        code = guest.run(
            list(workload.command), timeout=workload.timeout, environment=environment, chdir=chdir, max_output=0, on_output=hear
        ).exit_code
        outcome: Literal["passed", "failed", "timeout"] = "passed" if code == 0 else "failed"
    except GuestTimeout:
        outcome = "timeout"
    finally:
        show(len(pending))
    return WorkloadResult(
        command=workload.command,
        outcome=outcome,
        exit_code=code,
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 3),
        stdout=mask(tail.decode("utf-8", "replace"))[-KEPT_OUTPUT:],
    )
