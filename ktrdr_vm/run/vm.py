"""One VM of a run: that of the workload, or the fresh one that verifies its commits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ktrdr_vm.approvals.apply import find_pending, find_stop, reapply
from ktrdr_vm.egress.revision import read_revision
from ktrdr_vm.errors import EscalationStop, KtrdrError, ProvisionError, ResidueError, UsageError
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import place_playbook
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.guest.personalize import personalize
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.guest.workspace import Laid, copy_in, copy_returned
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.confinement import find_fork_obstacle
from ktrdr_vm.host.foreign_rules import require_passage
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.nft import list_ruleset
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.host.waiting import announce_wait
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.images.store import Image, refuse_disk
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.diagnosis import explain_loss
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance, load_instance
from ktrdr_vm.instance.resources.mount import require_source
from ktrdr_vm.instance.secrets import drop_secret
from ktrdr_vm.instance.snapshot import adopt, find_snapshot
from ktrdr_vm.instance.suspend import resume, shut_down
from ktrdr_vm.plan.changes import find_changes, require_possible, require_same_workspace
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.model import Secret, Workspace
from ktrdr_vm.report.model import GateResult, StageName, WorkloadResult
from ktrdr_vm.run.collect import Harvest
from ktrdr_vm.run.listener import Options
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.usage import Sampler, measure_gate
from ktrdr_vm.run.workload import run_workload, stop_workload
from ktrdr_vm.templates.base import fits
from ktrdr_vm.templates.project import build_best, find_best


@dataclass(frozen=True)
class RunContext:
    """What all VMs of a run share. `since` is the start of the run, and `mask` is applied to what a guest has said."""

    run_id: str
    since: str
    secrets: Mapping[str, bytes]
    mask: Callable[[str], str]


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
        self._loaded: LoadedInstance | None = None
        self.image: Image | None = None
        self.laid = Laid()
        folder = "verification" if name == "verification" else ""
        self.harvest = Harvest(gathered, self.instance.paths, self.connect, folder=folder, since=context.since)
        self._home = home
        self.destroyed = False
        self.sampler = Sampler(
            libvirt, gathered.plan.identity.domain, gathered.plan.identity.instance_id, ended=self.hang_up
        )
        self._context = context
        self._options = options
        self._name = name
        # A snapshot is where the run begins, and not its verification.
        self._source = options.source if name == "base" else ""

    @property
    def loaded(self) -> LoadedInstance:
        """The instance, once it was begun or resumed."""
        assert self._loaded is not None, "nothing was provisioned yet"
        return self._loaded

    def connect(self) -> Guest:
        """The guest, over a connection that lives."""
        return self.loaded.connect()

    def hang_up(self) -> None:
        """End the connection under whoever waits for an answer. May be called from any thread."""
        if self._loaded is not None:
            self._loaded.hang_up()

    # -- forward ----------------------------------------------------------------------------------------------------

    def provision(self, recorder: Recorder) -> None:
        """Image, template, resources, boot, identity, workspace."""
        instance, roots = self.instance, self.gathered.policy.mount_roots
        journal = instance.find_journal()
        before = plan_from_json(journal.plan) if journal is not None else None
        if before is not None:
            require_same_workspace(before, self.plan)
        template = find_snapshot(self._home, self._source, self.plan) if self._source else None
        if journal is None:
            require_passage(list_ruleset())
            for mount in self.plan.profile.mounts:
                require_source(mount, Path(self.plan.facts.workspace), roots)
        with self._phase(recorder, "image"):
            image = self.image = ensure_image(
                self.plan.profile.image,
                self.gathered.recipe,
                self._home.images,
                progress=recorder.listener.note,
                sources=self.gathered.policy.image_sources,
            )
        if reason := refuse_disk(self.plan.profile.resources.disk, image.virtual_size):
            raise UsageError(
                reason, where="resources.disk", hint="increase it; the disk uses only the space that is written"
            )
        plan = self.plan
        require_capacity(self._home.root, plan.profile.resources.memory)
        forks = not self._options.cold and not self._source and fits(plan) and journal is None
        if forks and (obstacle := find_fork_obstacle(instance.libvirt)):
            recorder.listener.note(f"boots without a template: {obstacle}")
            forks = False
        if forks:
            note = recorder.listener.note
            template = find_best(self._home, self.gathered, plan, image, note)
            if template is None:
                with self._phase(recorder, "template"):
                    template = build_best(self._home, self.gathered, plan, image, instance.libvirt, note)
        with self._phase(recorder, "create"):
            if journal is not None and plan.profile.mode == "sandbox":
                recorder.listener.note("an earlier run left this instance; it is destroyed first")
                instance.destroy(notify=recorder.on_resource)
                journal = before = None
            if journal is not None and before is not None:
                self._follow(journal, before, plan, recorder)
            loaded = self._loaded = instance.begin(
                plan,
                journal=journal,
                template=template,
                source=self._source,
                run_id=self._context.run_id,
                most_instances=self.gathered.policy.most_instances,
            )
            loaded.create(read_secret=self._read_secret, mount_roots=roots, notify=recorder.on_resource)
            loaded.guard.follow_plan(plan.digest)
            self._follow_revision(recorder)
            if plan.collector is not None:
                # An instance that stays has had other runs.
                loaded.guard.begin_run(self._context.run_id)
        self.sampler.start()
        limit = BOOT_LIMIT[plan.facts.accelerator]
        with self._phase(recorder, "boot"), announce_wait(recorder.listener.note, "waiting for SSH", limit):
            guest = loaded.connect(limit=limit)
        with self._phase(recorder, "personalize"):
            if self._source:
                adopt(guest, loaded.allocation.login_public_key)
            personalize(guest, plan, self._environment)
            loaded.complete(read_secret=self._read_secret, mount_roots=roots, notify=recorder.on_resource)
        # A branch has the workspace of what it began from.
        if plan.profile.workspace is not None and self.gathered.repository is not None and not self._source:
            target = plan.profile.workspace.target
            if (
                plan.profile.mode == "interactive"
                and guest.run(["test", "-e", f"{target}/.git"], timeout=60).exit_code == 0
            ):
                recorder.listener.note(f"{target} exists and is not changed, because the instance is interactive")
                return
            with self._phase(recorder, "workspace"):
                self._copy_workspace(self.gathered.repository, plan.profile.workspace, guest, recorder)

    def _follow_revision(self, recorder: Recorder) -> None:
        recorder.directory.follow_revision(partial(read_revision, self.instance.paths.guard))

    def _copy_workspace(self, repository: Repository, workspace: Workspace, guest: Guest, recorder: Recorder) -> None:
        user, name, note = self.plan.facts.image.user, self.plan.identity.instance_id, recorder.listener.note
        if self._name != "verification":
            keep = self.instance.paths.loose if self.plan.profile.is_verified_apart else None
            copy_in(repository, workspace, guest, user, name, note, keep=keep)
            return
        self.laid = copy_returned(repository, workspace, guest, user, name, note, loose=self.gathered.loose)
        if self.laid != Laid():
            recorder.directory.event("laid_beneath", **asdict(self.laid))

    def _follow(self, journal: Journal, before: Plan, plan: Plan, recorder: Recorder) -> None:
        """Let an instance that is there follow its profile: said what changes, and restarted where it must and may
        be."""
        changes = find_changes(before, plan)
        facts = self.instance.libvirt.find(plan.identity.domain)
        running = facts is not None and facts.state == "running"
        require_possible(changes, plan.identity.instance_id, running=running, restart=self._options.restart)
        for change in changes:
            recorder.listener.note(f"changes ({change.how}) {change}")
            recorder.directory.event(
                "change", part=change.part, before=change.before, after=change.after, how=change.how
            )
        if not running:
            return
        earlier = load_instance(self._home, self.instance.target, journal, before)
        with contextlib.closing(earlier):
            for secret in before.profile.secrets:
                if secret not in plan.profile.secrets:
                    drop_secret(earlier, secret.name)
            if self._options.restart:
                with self._phase(recorder, "shut down"):
                    shut_down(earlier)

    def run_gates(
        self, playbooks: Iterable[Playbook], recorder: Recorder, *, refused: str = ""
    ) -> tuple[GateResult, ...]:
        """Run gates in order until one does not pass; the others are skipped. `refused` is the reason to skip all."""
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
                    result = replace(result, message=f"{result.message}; {why}" if why else result.message)
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
        return run_playbook(playbook, self.connect(), context)

    def resume(self, recorder: Recorder) -> None:
        """Take up an instance that slept until its escalation was answered; what was approved is applied."""
        loaded = self._loaded = self.instance.load()
        pending = find_pending(loaded)
        if pending:
            raise self._stop(pending[0])
        with self._phase(recorder, "resume"):
            policy, note = self.gathered.policy, recorder.listener.note
            self.image = ensure_image(
                self.plan.profile.image,
                self.gathered.recipe,
                self._home.images,
                progress=note,
                sources=policy.image_sources,
            )
            roots = self.gathered.policy.mount_roots
            resume(loaded, read_secret=self._read_secret, mount_roots=roots, notify=recorder.on_resource)
            self._follow_revision(recorder)
            self.sampler.start()
            for one in reapply(loaded, self.gathered.policy):
                recorder.directory.event("escalation", **one.to_json())

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
        stop_workload(self.connect)

    def as_worked(self) -> Stage:
        """The same VM, whose further gate results belong to the verification."""
        self._name = "work"
        return self

    # -- backward ---------------------------------------------------------------------------------------------------

    def destroy(self, recorder: Recorder) -> tuple[tuple[str, ...], KtrdrError | None]:
        """The residue and the error of the teardown."""
        self.sampler.stop()
        if self._loaded is not None:
            self._loaded.close()
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
        if self._loaded is not None:
            return self._loaded.journal
        with contextlib.suppress(KtrdrError):
            return self.instance.find_journal()
        return None

    def keep(self) -> None:
        """The run ends and the instance stays, until somebody destroys it."""
        self.sampler.stop()
        journal = self._find_journal() or self.instance.require_journal()
        journal.keep()
        if self._loaded is not None:
            self._loaded.close()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _phase(self, recorder: Recorder, name: str) -> contextlib.AbstractContextManager[None]:
        return recorder.phase(name, of=self.harvest.folder)

    @property
    def _environment(self) -> dict[str, str]:
        return self.loaded.environment()

    def _read_secret(self, secret: Secret) -> bytes:
        return self._context.secrets[secret.name]
