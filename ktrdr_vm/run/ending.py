"""Steps at the end of a run, none of which prevents the others: errors are collected, unexpected ones are explained,
results that a run without time left still has are fetched, and a run that waits for an answer is suspended."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ktrdr_vm.errors import HostError, KtrdrError, ProvisionError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance.suspend import suspend
from ktrdr_vm.run.listener import Options
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.results import Results
from ktrdr_vm.run.vm import Stage


class Ending:
    """The first error at the end of a run; later ones are events. A failed step does not prevent the others."""

    def __init__(self, error: KtrdrError | None, explain: Callable[[Exception], KtrdrError]) -> None:
        self.error = error
        self._explain = explain

    def attempt(self, step: Callable[[], None], *, replace_error: bool = False) -> bool:
        """True if the step succeeded. With `replace_error` its error replaces an earlier one."""
        try:
            step()
        except Exception as caught:
            met = caught if isinstance(caught, KtrdrError) else self._explain(caught)
            self.error = met if replace_error else self.error or met
            return False
        return True

    def add(self, error: KtrdrError | None) -> None:
        self.error = self.error or error


def explain_unexpected(caught: Exception, recorder: Recorder, home: Home) -> KtrdrError:
    """An unexpected error as a KtrdrError; its traceback is an event of the run."""
    recorder.directory.event("unexpected", trace=traceback.format_exception(caught)[-20:])
    if isinstance(caught, OSError):
        return HostError(
            caught.strerror or str(caught),
            where=str(caught.filename or home.root),
            hint=(
                "free disk space, or check the permissions of this path; the last event in events.jsonl shows the step"
            ),
        )
    return ProvisionError(
        f"{type(caught).__name__}: {caught}",
        where="ktrdr-vm",
        hint="this is a bug in ktrdr-vm: please report it with events.jsonl",
    )


def bring_back(stage: Stage, results: Results, recorder: Recorder) -> None:
    """End the workload, and fetch its commits, notes and artifacts until now. What cannot be fetched is an event."""
    phases = {phase.name: phase.outcome for phase in recorder.phases}
    if "workload" not in phases or not stage.exists or stage.destroyed:
        return

    def pull() -> None:
        results.returned = stage.harvest.pull(recorder)

    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("workload", stage.stop_workload),
        ("commits", pull),
        ("notes", partial(stage.harvest.fetch_notes, recorder)),
        ("artifacts", partial(stage.harvest.fetch_artifacts, recorder)),
    )
    for what, step in steps:
        if phases.get(what) == "ok":
            continue
        try:
            step()
        except Exception as caught:  # the guest's bytes, and a guest that may be in any state
            recorder.directory.event("not_fetched", what=what, message=str(caught))
            if what == "workload":
                # The guest does not answer, and each of the others would wait for it.
                return


def suspend_run(stage: Stage, results: Results, options: Options, recorder: Recorder) -> None:
    """Suspend the instance until the escalation is answered. The evidence so far is stored."""
    from ktrdr_vm.run.checkpoint import Stop, write_stop

    stage.harvest.keep_evidence(recorder)
    gathered = stage.gathered
    write_stop(
        stage.instance,
        Stop(
            profile=str(Path(gathered.loaded.source).resolve()),
            workspace=gathered.plan.facts.workspace,
            gates=tuple(name for name, _ in gathered.playbooks),
            keep=options.keep,
            cold=options.cold,
            run_id=results.run_id,
            started_at=results.started_at,
            plan_digest=gathered.plan.digest,
            results=results.gates,
        ),
    )
    stage.sampler.stop()
    with recorder.phase("suspend"):
        suspend(stage.loaded, notify=recorder.on_resource)
