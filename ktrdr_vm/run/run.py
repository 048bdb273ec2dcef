"""One run: create the instance, run workload and gates, verify the commits, collect the evidence, destroy the instance,
report.

A run is one call, one report and one directory. It does not use the terminal, and reports its progress to a `Listener`.

The modules that judge and report are imported when they are needed: the guest works meanwhile, and before its start
they would delay each run.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ktrdr_vm.errors import EscalationStop, KtrdrError, LimitReached, UsageError
from ktrdr_vm.evidence.run_directory import RunDirectory, make_run_id
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.guest.workspace import Laid, require_clean
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.journal import explained
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import create_run, find_run
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.garbage import collect_expired
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.plan.plan import canonical_json
from ktrdr_vm.report.mask import SHORT, find_short
from ktrdr_vm.run.ending import Ending, bring_back, explain_unexpected, suspend_run
from ktrdr_vm.run.listener import Listener, Options
from ktrdr_vm.run.mask import GrowingMask
from ktrdr_vm.run.provision import RunContext
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.results import Results
from ktrdr_vm.run.vm import Stage

if TYPE_CHECKING:
    from ktrdr_vm.instance.instance import Instance
    from ktrdr_vm.report.model import GateResult, RunReport, StageName
    from ktrdr_vm.run.checkpoint import Stop

KEPT_RUNS = 20


class Run:
    """The state of one run. Use `execute` once."""

    def __init__(
        self,
        gathered: Gathered,
        home: Home,
        libvirt: Libvirt,
        options: Options,
        listener: Listener,
        *,
        stop: Stop | None = None,
    ) -> None:
        self._gathered = gathered
        self._stop = stop
        self._home = home
        self._libvirt = libvirt
        self._options = options
        self._listener = listener
        self._stages: list[Stage] = []
        self._secrets: dict[str, bytes] = {}
        self._results = Results(
            run_id=stop.run_id if stop else make_run_id(), started_at=stop.started_at if stop else now()
        )
        self._mask = GrowingMask(self._results.run_id)
        # Held to the end of the run: the locks of the instance and of the one that verifies it.
        self._locks = contextlib.ExitStack()

    def execute(self) -> RunReport:
        """Execute the run. Raises only errors before the first resource exists: a missing secret, a busy instance."""
        plan = self._gathered.plan
        playbooks = [playbook for _, playbook in self._gathered.playbooks]
        sent = self._options.secrets
        self._secrets = {one.name: sent.get(one.name) or read_source(one) for one in plan.profile.secrets}
        self._mask.add(self._secrets.values())
        for name in find_short(self._secrets):
            self._listener.note(
                f"the secret {name} is shorter than {SHORT} bytes: masking it could hide other text, and it may be"
                " guessed"
            )
        if plan.profile.workspace is not None and self._gathered.repository is not None:
            require_clean(self._gathered.repository, plan.profile.workspace)
        self._home.create()
        for row in collect_expired(self._home, self._libvirt):
            self._listener.note(f"{row['action']} {row['instance_id']}: {row['reason']}")
        with self._locks:
            stage = self._add_stage(self._gathered, "base")
            if self._stop is not None:
                from ktrdr_vm.run.checkpoint import require_stop

                require_stop(stage.instance, self._stop)
            if plan.profile.mode == "sandbox" and stage.instance.find_mode() == "interactive":
                # A sandbox ends with its run in any case; an interactive instance must not.
                raise UsageError(
                    f"{plan.identity.instance_id} is an interactive instance, and this profile is for a sandbox",
                    where="ktrdr-vm apply",
                    hint="choose another --instance-id, or destroy the instance first with `ktrdr-vm destroy`",
                )
            if self._stop is None:
                _refuse_stopped(stage.instance)
            report = self._execute_locked(playbooks)
        self._export(report)
        return report

    def _export(self, report: RunReport) -> None:
        """Send the run to the collector, if there is one. The lock is released already, and the outcome does not
        change."""
        from ktrdr_vm.evidence.otel_export import report_run

        identity = {
            "service.namespace": report.instance_id,
            "ktrdr.instance_id": report.instance_id,
            "ktrdr.environment": report.mode,
            "ktrdr.run_id": report.run_id,
        }
        run = find_run(self._home, report.instance_id, report.run_id)
        report_run(run, identity, os.environ, self._gathered.policy, self._listener.note)

    def _add_stage(self, gathered: Gathered, name: StageName) -> Stage:
        """One more VM of this run, its instance locked."""
        context = RunContext(self._results.run_id, self._results.started_at, self._secrets, self._mask)
        stage = Stage(gathered, self._home, self._libvirt, context, self._options, name=name)
        self._locks.enter_context(stage.instance.locked())
        self._stages.append(stage)
        return stage

    def _execute_locked(self, playbooks: list[Playbook]) -> RunReport:
        plan = self._gathered.plan
        began = time.monotonic()
        with explained(str(self._home.root)):
            path = create_run(
                self._home, plan.identity.instance_id, self._results.run_id, continued=self._stop is not None
            )
        with explained(str(path)):
            recorder = Recorder(
                RunDirectory(path, plan.identity.instance_id, plan.facts.owner, self._mask), self._listener
            )
            recorder.directory.event(
                "run_continued" if self._stop else "run_started", profile=plan.profile.name, plan_digest=plan.digest
            )
            recorder.directory.write("plan.json", canonical_json(plan.to_json()))
        self._listener.started(path, self._mask)
        error: KtrdrError | None = None
        interrupted = False
        try:
            self._work(playbooks, recorder)
        except LimitReached:
            interrupted = self._results.limited = True
            self._listener.note("the time is nearly over; fetching what the workload has, and cleaning up")
        except KeyboardInterrupt:
            interrupted = True
            self._listener.note("interrupted; cleaning up (interrupt again to stop immediately)")
        except KtrdrError as caught:
            error = caught
        except Exception as caught:  # whatever it is, created resources are removed
            error = explain_unexpected(caught, recorder, self._home)
        try:
            if self._results.limited:
                bring_back(self._stages[0], self._results, recorder)
            report = self._finish(recorder, began, error, interrupted)
        except KeyboardInterrupt:
            # The first interrupt is handled here, the second ends the process; all steps of the teardown are
            # idempotent.
            self._listener.note("interrupted; cleaning up (interrupt again to stop immediately)")
            report = self._finish(recorder, began, error, interrupted=True)
        from ktrdr_vm.host.run_removal import remove_old_runs

        with contextlib.suppress(OSError):
            remove_old_runs(path.parent, KEPT_RUNS)
        return report

    # -- forward ----------------------------------------------------------------------------------------------------

    def _work(self, playbooks: list[Playbook], recorder: Recorder) -> None:
        """Run the first gate on the base commit, then the workload, then all gates on its commits."""
        stage = self._stages[0]
        if self._stop is not None:
            stage.resume(recorder)
            self._mask.follow(stage.instance.paths.guard)
            self._results.gates = self._stop.results
            if self._results.passed:
                stage.open_brokers(playbooks[0])
        else:
            stage.provision(recorder)
            self._mask.follow(stage.instance.paths.guard)
            self._results.gates = stage.run_gates(playbooks[:1] if stage.plan.profile.workload else playbooks, recorder)
        if stage.plan.profile.workload is None:
            stage.harvest.fetch_artifacts(recorder)
            self._judge(stage)
            return
        if self._results.passed:
            self._results.workload = stage.run_workload(recorder, again=self._stop is not None)
            self._results.returned = stage.harvest.pull(recorder)
            stage.harvest.fetch_notes(recorder)
        from ktrdr_vm.run.verification import choose_mode, sum_up

        refused = "" if self._results.passed else "an earlier gate or the workload failed"
        if choose_mode(stage.plan.profile) == "same":
            judged = stage.as_worked().run_gates(playbooks[1:], recorder, refused=refused)
            self._results.gates += judged
            stage.harvest.fetch_artifacts(recorder)
            self._results.verification = sum_up(stage.plan, "same", judged, refused)
            return
        stage.harvest.fetch_artifacts(recorder)
        self._verify(playbooks, recorder, refused)

    def _judge(self, stage: Stage) -> None:
        """The verdict about the commit of `ktrdr-vm verify`, whose gates ran in a VM that nothing else was in."""
        from ktrdr_vm.guest.commits import Returned, ReturnedRef
        from ktrdr_vm.run.verification import sum_up

        base = self._gathered.base
        if base is not None:
            self._results.gates = tuple(replace(gate, stage="verification") for gate in self._results.gates)
            self._results.verification = sum_up(stage.plan, "fresh", self._results.gates, laid=Laid())
            self._results.returned = Returned((ReturnedRef(base.ref, stage.plan.facts.base_commit, base.changed),))

    def _verify(self, playbooks: list[Playbook], recorder: Recorder, refused: str) -> None:
        """All gates again, in a fresh VM. The VM of the workload is destroyed before, unless it is to be kept."""
        from ktrdr_vm.guest.loose_files import open_stored
        from ktrdr_vm.inputs.from_commits import make_fresh
        from ktrdr_vm.run.verification import sum_up

        # Opened before the VM of the workload is destroyed with its files.
        loose = self._locks.enter_context(open_stored(self._stages[0].instance.paths.loose))
        gathered = make_fresh(self._gathered, self._results.returned, loose)
        judged: tuple[GateResult, ...] = ()
        message = refused
        try:
            if not refused:
                if not self._may_keep():
                    self._end(self._stages[0], recorder)
                fresh = self._add_stage(gathered, "verification")
                fresh.provision(recorder)
                self._results.laid = fresh.laid
                self._mask.follow(fresh.instance.paths.guard)
                judged = fresh.run_gates(playbooks, recorder)
                fresh.harvest.fetch_artifacts(recorder)
        except KtrdrError as error:
            message = error.message
            raise
        finally:
            self._results.gates += judged
            self._results.verification = sum_up(gathered.plan, "fresh", judged, message, laid=self._results.laid)

    # -- backward ---------------------------------------------------------------------------------------------------

    def _end(self, stage: Stage, recorder: Recorder) -> None:
        """Collect the evidence, then destroy. Raises errors of the teardown; the residue is recorded."""
        stage.harvest.keep_evidence(recorder)
        residue, error = stage.destroy(recorder)
        self._results.residue += residue
        if error is not None:
            raise error

    def _finish(self, recorder: Recorder, began: float, error: KtrdrError | None, interrupted: bool) -> RunReport:
        """Suspend or destroy each instance with its evidence, then report. An error of a step is recorded, and the next
        step runs."""
        ending = Ending(error, partial(explain_unexpected, recorder=recorder, home=self._home))
        failed = error is not None or interrupted or not self._results.passed
        kept = False
        if isinstance(error, EscalationStop) and not interrupted:
            # An instance that cannot be suspended is destroyed.
            kept = ending.attempt(partial(self._suspend, recorder), replace_error=True)
        for stage in () if kept else self._stages:
            if stage.destroyed:
                continue
            ending.attempt(partial(self._keep_evidence, stage, recorder))
            if self._keeps(stage, failed or ending.error is not None) or (self._stop is not None and stage.suspended):
                kept = True
                ending.attempt(partial(self._keep, stage))
            else:
                residue, destroy_error = stage.destroy(recorder)
                self._results.residue += residue
                ending.add(destroy_error)
        self._mask.stop()
        return self._report(recorder, began, ending, interrupted, kept)

    def _keep_evidence(self, stage: Stage, recorder: Recorder) -> None:
        # A step of its own, with the import of what fetches it: without that, the instance is destroyed all the same.
        stage.harvest.keep_evidence(recorder)

    def _keep(self, stage: Stage) -> None:
        stage.keep()
        name = stage.plan.identity.instance_id
        self._listener.note(
            f"the instance is kept; connect with `ktrdr-vm ssh {name}`, remove it with `ktrdr-vm destroy {name}`"
        )

    def _report(self, recorder: Recorder, began: float, ending: Ending, interrupted: bool, kept: bool) -> RunReport:
        """Assemble and write the report. A failure to write it is an error of the run, which the returned report
        contains."""
        from ktrdr_vm.run.assembly import assemble, write_report

        assembled = assemble(
            self._results,
            self._stages,
            self._gathered,
            recorder,
            seconds=time.monotonic() - began,
            error=ending.error,
            interrupted=interrupted,
            kept=kept,
        )
        if ending.attempt(lambda: write_report(recorder.directory, assembled, self._attest), replace_error=True):
            return assembled.report
        report = assembled.report
        assert ending.error is not None
        message, hint = report.message or str(ending.error), report.hint or ending.error.hint
        if report.exit_code in (0, 1):
            report = replace(report, outcome="error", exit_code=ending.error.exit_code)
        return replace(report, message=message, hint=hint)

    def _attest(self, report: RunReport) -> str | None:
        """The attestation; None without a verdict, or if the key cannot be used, which does not change the verdict."""
        from ktrdr_vm.evidence.attestation import make_attestation

        try:
            return make_attestation(report, self._home, self._gathered.policy)
        except KtrdrError as error:
            self._listener.note(f"the verdict is not attested: {error}; {error.hint}")
            return None

    def _suspend(self, recorder: Recorder) -> None:
        # An escalation is one of the workload, whose VM is the only one.
        [stage] = self._stages
        suspend_run(stage, self._results, self._options, recorder)

    def _may_keep(self) -> bool:
        return self._gathered.plan.profile.mode == "interactive" or self._options.keep != "never"

    def _keeps(self, stage: Stage, failed: bool) -> bool:
        if not stage.exists:
            return False
        if stage.plan.profile.mode == "interactive":
            return True
        return self._options.keep == "always" or (self._options.keep == "on-failure" and failed)


def _refuse_stopped(instance: Instance) -> None:
    """UsageError if a run of this instance waits for an answer: another run would destroy what the workload has done,
    and has not sent yet."""
    if instance.paths.stop.exists() and instance.paths.saved.exists():
        name = instance.identity.instance_id
        raise UsageError(
            "its run stopped at an escalation, and the work of its agent is in the suspended VM",
            where=name,
            hint=f"`ktrdr-vm apply --continue {name}` continues it, `ktrdr-vm destroy {name}` gives it up",
        )
