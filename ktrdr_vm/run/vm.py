"""One VM of a run: that of the workload, or the fresh one that verifies its commits.

What is needed after the guest has answered is imported then; before, it would delay each run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ktrdr_vm.errors import EscalationStop, GuestError, KtrdrError, ProvisionError, ResidueError
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.guest.workspace import Laid
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.diagnosis import explain_loss
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.run.listener import Options
from ktrdr_vm.run.provision import Provisioner, RunContext
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.usage import Sampler, measure_gate

if TYPE_CHECKING:
    from ktrdr_vm.report.model import GateResult, StageName, WorkloadResult
    from ktrdr_vm.run.collect import Harvest


class Stage:
    """An instance and the phases of a run in it. Every method is one phase or more."""

    def __init__(
        self,
        gathered: Gathered,
        home: Home,
        libvirt: Libvirt,
        context: RunContext,
        options: Options,
        *,
        name: StageName,
    ) -> None:
        self.gathered = gathered
        self.plan = gathered.plan
        self.instance = Instance(home, gathered.plan.identity, libvirt)
        self.destroyed = False
        self.sampler = Sampler(
            libvirt, gathered.plan.identity.domain, gathered.plan.identity.instance_id, ended=self.hang_up
        )
        self._provisioner = Provisioner(gathered, home, self.instance, context, options, self.sampler, name=name)
        self._context = context
        self._name = name

    @property
    def loaded(self) -> LoadedInstance:
        """The instance, once it was begun or resumed."""
        assert self._provisioner.loaded is not None, "nothing was provisioned yet"
        return self._provisioner.loaded

    @property
    def image(self) -> Image | None:
        """Its image; None before that is in place."""
        return self._provisioner.image

    @property
    def laid(self) -> Laid:
        """What was laid beneath the commits that this VM verifies."""
        return self._provisioner.laid

    @functools.cached_property
    def harvest(self) -> Harvest:
        """What is fetched from the instance."""
        from ktrdr_vm.run.collect import Harvest

        folder, since = self._folder, self._context.since
        return Harvest(self.gathered, self.instance.paths, self.connect, folder=folder, since=since)

    @property
    def _folder(self) -> str:
        return "verification" if self._provisioner.verifies else ""

    def connect(self) -> Guest:
        """The guest, over a connection that lives."""
        return self.loaded.connect()

    def hang_up(self) -> None:
        """End the connection under whoever waits for an answer. May be called from any thread."""
        if self._provisioner.loaded is not None:
            self._provisioner.loaded.hang_up()

    # -- forward ----------------------------------------------------------------------------------------------------

    def provision(self, recorder: Recorder) -> None:
        """Image, template, resources, boot, identity, workspace."""
        self._provisioner.provision(recorder)

    def resume(self, recorder: Recorder) -> None:
        """Resume an instance that was suspended until its escalation was answered; what was approved is applied."""
        from ktrdr_vm.approvals.apply import find_pending, reapply

        loaded = self._provisioner.load()
        if pending := find_pending(loaded):
            raise self._stop(pending[0])
        with self._phase(recorder, "resume"):
            self._provisioner.resume(loaded, recorder)
            for one in reapply(loaded, self.gathered.policy):
                recorder.directory.event("escalation", **one.to_json())

    def run_gates(
        self, playbooks: Iterable[Playbook], recorder: Recorder, *, refused: str = ""
    ) -> tuple[GateResult, ...]:
        """Run gates in order until one does not pass; the others are skipped. `refused` is the reason to skip all."""
        from ktrdr_vm.report.model import GateResult

        results: list[GateResult] = []
        for playbook in playbooks:
            if not refused and any(result.outcome != "passed" for result in results):
                refused = "an earlier gate failed"
            if refused:
                results.append(GateResult(playbook.name, "skipped", now(), 0.0, message=refused, stage=self._name))
                continue
            with self._phase(recorder, f"gate {playbook.name}"):
                self.loaded.require_closed()
                result = replace(self._run_gate(playbook, recorder), stage=self._name)
                if result.outcome == "error":
                    why = self._context.mask(explain_loss(self.instance.target))
                    if why not in result.message:
                        result = replace(result, message=f"{result.message}; {why}")
                results.append(replace(result, usage=measure_gate(result, self.sampler.samples, now())))
                self.harvest.add_fetched(playbook.name, recorder)
                if result.outcome == "passed":
                    self.open_brokers(playbook)
                with contextlib.suppress(KtrdrError):
                    self.loaded.guard.flush()
        return tuple(results)

    def open_brokers(self, passed: Playbook) -> None:
        """Notify the guard that a gate of the profile has passed, if a brokered secret requires it."""
        waited = {broker.after for _, broker in self.plan.profile.brokered}
        for gate, playbook in self.gathered.playbooks:
            if gate in waited and playbook.path == passed.path:
                self.loaded.guard.pass_gate(gate)

    def _run_gate(self, playbook: Playbook, recorder: Recorder) -> GateResult:
        from ktrdr_vm.gates.context import GateContext
        from ktrdr_vm.gates.load import place_playbook
        from ktrdr_vm.gates.runner import run_playbook
        from ktrdr_vm.report.model import GateResult

        try:
            guest = self.connect()
        except GuestError as error:
            # A VM that was lost between two gates, as one that is lost in the middle of a gate.
            message = self._context.mask(f"{error.message} ({error.hint})")
            return GateResult(playbook.name, "error", now(), 0.0, message=message)
        base, repository = self.gathered.base, self.gathered.repository
        workspace = Place(base.root) if base else repository.place if repository else None
        context = GateContext(
            extra_vars=dict(self.plan.profile.vars),
            roots=(place_playbook(playbook.path, self.gathered.documents).parent, *((workspace,) if workspace else ())),
            artifacts=self.harvest.place_artifacts(recorder) / playbook.name,
            environment=self._environment,
            mask=self._context.mask,
            on_event=recorder.on_gate,
            gate_timeout=self.plan.profile.gate_timeout,
        )
        return run_playbook(playbook, guest, context)

    def _stop(self, escalation_id: str) -> EscalationStop:
        name = self.plan.identity.instance_id
        return EscalationStop(
            f"the run waits for an answer to {escalation_id}",
            where=name,
            hint=(
                f"`ktrdr-vm escalations show {name} {escalation_id}`, approve or deny it, then `ktrdr-vm apply"
                f" --continue {name}`"
            ),
        )

    def run_workload(self, recorder: Recorder, *, again: bool = False) -> WorkloadResult | None:
        """None if the profile has none. EscalationStop if it waits too long for an answer, or failed with a pending
        escalation."""
        workload = self.plan.profile.workload
        if workload is None:
            return None
        from ktrdr_vm.approvals.apply import find_pending, find_stop
        from ktrdr_vm.run.workload import run_workload

        policy = self.gathered.policy
        with self._phase(recorder, "workload"):
            result = run_workload(
                self.connect,
                workload,
                environment=self._environment,
                chdir=self.plan.profile.workspace.target if self.plan.profile.workspace else None,
                mask=self._context.mask,
                on_output=recorder.listener.output,
                again=again,
                leave=lambda: bool(find_stop(self.loaded, policy)),
            )
            pending = find_pending(self.loaded) if result is None or result.outcome != "passed" else []
            if pending:
                raise self._stop(pending[0])
            return result

    def stop_workload(self) -> None:
        """Kill what of the workload still runs."""
        from ktrdr_vm.run.workload import stop_workload

        stop_workload(self.connect)

    def as_worked(self) -> Stage:
        """The same VM, whose further gate results belong to the verification."""
        self._name = "work"
        return self

    # -- backward ---------------------------------------------------------------------------------------------------

    def destroy(self, recorder: Recorder) -> tuple[tuple[str, ...], KtrdrError | None]:
        """The residue and the error of the teardown."""
        self.sampler.stop()
        if self._provisioner.loaded is not None:
            self._provisioner.loaded.close()
        try:
            with self._phase(recorder, "destroy"):
                self.instance.destroy(notify=recorder.on_resource)
            self.destroyed = True
        except ResidueError as error:
            return error.left, error
        except KtrdrError as error:
            return (f"unknown: {error.message}",), error
        except Exception as error:
            hint = f"`ktrdr-vm destroy {self.plan.identity.instance_id}`; please report this with events.jsonl"
            return (f"unknown: {error}",), ProvisionError(
                f"{type(error).__name__}: {error}", where="ktrdr-vm", hint=hint
            )
        return (), None

    @property
    def exists(self) -> bool:
        """True if its journal exists and can be read."""
        try:
            return self.instance.find_journal() is not None
        except KtrdrError:
            return False

    @property
    def suspended(self) -> bool:
        """True if it is still suspended. An instance that could not be resumed, for lack of memory for example, is kept
        suspended."""
        journal = self._find_journal()
        return journal is not None and journal.state == "suspended"

    def _find_journal(self) -> Journal | None:
        """The one that it was loaded with, else what is on the disk; None also for one that cannot be read."""
        if self._provisioner.loaded is not None:
            return self._provisioner.loaded.journal
        with contextlib.suppress(KtrdrError):
            return self.instance.find_journal()
        return None

    def keep(self) -> None:
        """The run ends and the instance stays, until somebody destroys it."""
        self.sampler.stop()
        journal = self._find_journal() or self.instance.require_journal()
        journal.keep()
        if self._provisioner.loaded is not None:
            self._provisioner.loaded.close()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _phase(self, recorder: Recorder, name: str) -> contextlib.AbstractContextManager[None]:
        return recorder.phase(name, of=self._folder)

    @property
    def _environment(self) -> dict[str, str]:
        return self.loaded.environment()
