"""One run: make the instance, work in it, gate it, bring the evidence back, destroy it, prove that nothing is left, report.

A run is one call, one report and one directory. It assumes no terminal and says everything through a `Listener`.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.control import ask_guard
from ktrdr_vm.errors import GuestError, HostError, KtrdrError, ProvisionError, ResidueError, UsageError
from ktrdr_vm.evidence import RunDirectory, make_run_id, remove_old_runs, sum_up_egress
from ktrdr_vm.first_lines import find_first_lines
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.gather import Gathered
from ktrdr_vm.guest.artifacts import fetch_artifacts
from ktrdr_vm.guest.commits import pull_commits
from ktrdr_vm.guest.personalize import make_environment, personalize
from ktrdr_vm.guest.ssh import SshGuest
from ktrdr_vm.guest.workspace import copy_in, require_clean
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.images.store import Image
from ktrdr_vm.instance import BOOT_LIMIT, Instance, Verb
from ktrdr_vm.listener import Listener, Options
from ktrdr_vm.plan.plan import Plan, canonical_json
from ktrdr_vm.profile.model import Secret
from ktrdr_vm.report.artifacts import make_artifacts
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.mask import make_mask
from ktrdr_vm.report.model import Artifact, Commits, GateResult, Phase, RunOutcome, RunReport, WorkloadResult
from ktrdr_vm.resources.secret import read_source
from ktrdr_vm.template import build_template, find_template, fits
from ktrdr_vm.workload import run_workload

KEPT_RUNS = 20
DOCKER_LIMIT = 300.0
# Paths of a branch that the report lists; its first lines are about all of them.
MAX_CHANGED = 1000


class Run:
    """The state of one run. Use `execute` once."""

    def __init__(self, gathered: Gathered, home: Home, libvirt: Libvirt, options: Options, listener: Listener) -> None:
        self._gathered = gathered
        self._plan = gathered.plan
        self._home = home
        self._options = options
        self._listener = listener
        self._instance = Instance(home, gathered.plan.identity, libvirt)
        self._phases: list[Phase] = []
        self._gates: list[GateResult] = []
        self._workload: WorkloadResult | None = None
        self._artifacts: tuple[Artifact, ...] = ()
        self._commits: tuple[Commits, ...] = ()
        self._resources: list[dict[str, str]] = []
        self._ledger: list[dict[str, Any]] | None = None
        self._image: Image | None = None
        self._secrets: dict[str, bytes] = {}
        self._mask: Callable[[str], str] = str
        self._directory: RunDirectory | None = None

    def execute(self) -> RunReport:
        """Do it all. Raises only what happens before anything exists: bad playbooks, a missing secret, a busy instance."""
        playbooks = [load_playbook(path) for _, path in self._gathered.playbooks]
        self._secrets = {secret.name: read_source(secret) for secret in self._plan.profile.secrets}
        self._mask = make_mask(self._secrets.values())
        if self._plan.profile.workspace is not None and self._gathered.repository is not None:
            require_clean(self._gathered.repository, self._plan.profile.workspace)
        self._home.create()
        with self._instance.locked():
            if self._plan.profile.mode == "sandbox" and self._instance.find_mode() == "interactive":
                # A sandbox ends with its run, whatever happens; what a person lives in must not end so.
                raise UsageError(
                    f"{self._plan.identity.instance_id} is an interactive instance, and this profile is a sandbox",
                    where="ktrdr-vm apply",
                    hint="choose another --instance-id, or `ktrdr-vm destroy` it first",
                )
            return self._execute_locked(playbooks)

    def _execute_locked(self, playbooks: list[Playbook]) -> RunReport:
        plan = self._plan
        run_id, started_at, began = make_run_id(), now(), time.monotonic()
        owner = (plan.facts.owner_uid, plan.facts.owner_gid)
        path = self._home.run(plan.identity.instance_id, run_id)
        directory = self._directory = RunDirectory(path, plan.identity.instance_id, owner, self._mask)
        directory.event("run_started", profile=plan.profile.name, plan_digest=plan.digest)
        directory.write("plan.json", canonical_json(plan.to_json()))
        error: KtrdrError | None = None
        interrupted = False
        try:
            self._provision(run_id)
            self._work(playbooks)
        except KeyboardInterrupt:
            interrupted = True
            self._listener.note("interrupted; cleaning up (once more to stop at once)")
        except KtrdrError as caught:
            error = caught
        except Exception as caught:  # whatever it is, what was made is taken away
            error = self._explain(caught)
        try:
            report = self._finish(run_id, started_at, began, error, interrupted)
        except KeyboardInterrupt:
            # The first one comes here, the second ends the process; every step of the end may be done twice.
            self._listener.note("interrupted; cleaning up (once more to stop at once)")
            report = self._finish(run_id, started_at, began, error, interrupted=True)
        with contextlib.suppress(OSError):
            remove_old_runs(path.parent, KEPT_RUNS)
        return report

    def _explain(self, caught: Exception) -> KtrdrError:
        """An error that nobody foresaw, as one that a person can read; its trace is an event of the run."""
        assert self._directory is not None
        self._directory.event("unexpected", trace=traceback.format_exception(caught)[-20:])
        if isinstance(caught, OSError):
            return HostError(
                caught.strerror or str(caught),
                where=str(caught.filename or self._home.root),
                hint="free space, or look at the rights of this place; events.jsonl says what was being done",
            )
        return ProvisionError(
            f"{type(caught).__name__}: {caught}", where="ktrdr-vm", hint="a mistake of this program: please report it with events.jsonl"
        )

    def _finish(self, run_id: str, started_at: str, began: float, error: KtrdrError | None, interrupted: bool) -> RunReport:
        """Evidence, the end of the instance, the report. Nothing that goes wrong with the evidence keeps the instance alive."""
        assert self._directory is not None
        plan, directory = self._plan, self._directory
        residue: tuple[str, ...] = ()
        try:
            self._keep_evidence()
            if self._ledger is None:
                self._ledger = directory.keep_ledger(self._instance.paths.ledger, since=started_at)
        except (OSError, KtrdrError) as caught:
            error = error or (caught if isinstance(caught, KtrdrError) else self._explain(caught))
        failed = error is not None or interrupted or not self._passed()
        kept = self._keeps(failed)
        if kept:
            try:
                self._instance.keep()
            except KtrdrError as caught:
                error = error or caught
            self._listener.note(f"the instance is kept; `ktrdr-vm ssh {plan.identity.instance_id}` enters it, `ktrdr-vm destroy` ends it")
        else:
            residue, destroy_error = self._destroy()
            error = error or destroy_error
        allowed, denied = sum_up_egress(self._ledger or [], tuple(self._gates))
        outcome: RunOutcome = "interrupted" if interrupted else "error" if error else "passed" if self._passed() else "failed"
        report = RunReport(
            instance_id=plan.identity.instance_id,
            run_id=run_id,
            profile=plan.profile.name,
            mode=plan.profile.mode,
            plan_digest=plan.digest,
            image_digest=plan.facts.image.digest,
            outcome=outcome,
            exit_code=self._exit_code(interrupted, residue, error),
            started_at=started_at,
            duration_s=round(time.monotonic() - began, 3),
            phases=tuple(self._phases),
            gates=tuple(self._gates),
            workload=self._workload,
            allowed=allowed,
            denied=denied,
            artifacts=self._artifacts,
            commits=tuple(replace(one, changed=one.changed[:MAX_CHANGED]) for one in self._commits),
            first_lines=find_first_lines(self._commits, self._gathered),
            residue=residue,
            kept=kept,
            resources=tuple(self._resources),
            image=self._describe_image(),
            host={"accelerator": plan.facts.accelerator, "accelerator_reason": self._gathered.accelerator.reason},
            message=self._mask(str(error)) if error else "",
            hint=self._mask(error.hint) if error else "",
        )
        try:
            self._write_report(report)
        except OSError as caught:
            explained = self._explain(caught)
            changes = {"outcome": "error", "exit_code": explained.exit_code} if report.exit_code in (0, 1) else {}
            report = replace(report, message=report.message or str(explained), hint=report.hint or explained.hint, **changes)  # type: ignore[arg-type]
        return report

    # -- forward ----------------------------------------------------------------------------------------------------

    def _provision(self, run_id: str) -> None:
        plan, instance = self._plan, self._instance
        with self._phase("image"):
            self._image = ensure_image(plan.profile.image, self._gathered.recipe, self._home.images, progress=self._listener.note)
        plan = self._know_image(self._image)
        require_capacity(self._home.root, plan.profile.resources.memory)
        template = None
        if not self._options.cold and fits(plan) and instance.journal is None:
            template = find_template(self._home, plan, self._image)
            if template is None:
                with self._phase("template"):
                    template = build_template(self._home, plan, self._image, instance.libvirt, progress=self._listener.note)
        with self._phase("create"):
            if instance.journal is not None and plan.profile.mode == "sandbox":
                self._listener.note("an earlier run left this instance; it is destroyed first")
                instance.destroy(notify=self._hear_resource)
            roots = self._gathered.policy.mount_roots
            instance.create(
                plan, read_secret=self._read_secret, mount_roots=roots, template=template, run_id=run_id, notify=self._hear_resource
            )
        with self._phase("boot"):
            guest = instance.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
        with self._phase("personalize"):
            personalize(guest, plan.identity, plan.profile.mode, self._environment)
            self._wait_docker(guest)
            instance.complete(plan, read_secret=self._read_secret, mount_roots=roots, notify=self._hear_resource)
        if plan.profile.workspace is not None and self._gathered.repository is not None:
            with self._phase("workspace"):
                copy_in(
                    self._gathered.repository,
                    plan.profile.workspace,
                    guest,
                    plan.facts.image.user,
                    plan.identity.instance_id,
                    self._listener.note,
                )

    def _know_image(self, image: Image) -> Plan:
        """An image by URL tells its format only when it is here; the plan that is carried out, and reported, is the one that knows it."""
        facts = self._plan.facts
        if image.disk_format != facts.image.disk_format:
            known = replace(facts, image=replace(facts.image, disk_format=image.disk_format))
            self._plan = replace(self._plan, facts=known)
            assert self._directory is not None
            self._directory.write("plan.json", canonical_json(self._plan.to_json()))
        return self._plan

    def _wait_docker(self, guest: SshGuest) -> None:
        """Docker's unit answers when it serves. A guest without Docker has nothing to wait for."""
        waited = guest.run("! command -v dockerd >/dev/null || systemctl start docker.service", become=True, timeout=DOCKER_LIMIT)
        if waited.exit_code != 0:
            raise GuestError(
                f"Docker does not start in the guest: {waited.stderr.decode('utf-8', 'replace')[-300:].strip()}",
                where=self._plan.identity.instance_id,
                hint="`--keep always` keeps the instance; look with `journalctl -u docker` in it",
            )

    @property
    def _environment(self) -> dict[str, str]:
        return make_environment(self._plan.identity, self._plan.profile.mode, dict(self._plan.profile.environment))

    def _work(self, playbooks: list[Playbook]) -> None:
        """The first gate shows that the base starts; then the workload; then the other gates, until one fails."""
        for index, playbook in enumerate(playbooks):
            if index == 1:
                self._run_workload()
            if not self._passed():
                self._gates.append(_skipped(playbook, "an earlier gate or the workload failed"))
                continue
            with self._phase(f"gate {playbook.name}"):
                self._gates.append(self._run_gate(playbook))
                with contextlib.suppress(KtrdrError):
                    ask_guard(self._instance.paths.guard, "flush")
        if len(playbooks) < 2 and self._passed():
            self._run_workload()
        self._pull()
        if self._plan.profile.artifacts:
            with self._phase("artifacts"):
                assert self._directory is not None
                owner = (self._plan.facts.owner_uid, self._plan.facts.owner_gid)
                folder = self._directory.path / "artifacts"
                self._artifacts = make_artifacts(
                    fetch_artifacts(self._instance.connect(), self._plan.profile.artifacts, folder, owner=owner)
                )

    def _pull(self) -> None:
        """Bring the workload's commits home. Without a workload there is nobody who commits."""
        workspace, repository = self._plan.profile.workspace, self._gathered.repository
        if workspace is None or repository is None or self._plan.profile.workload is None:
            return
        with self._phase("commits"):
            returned = pull_commits(
                repository, self._plan.facts.base_commit, workspace.target, self._instance.connect(), self._plan.identity
            )
            self._commits = tuple(Commits(one.ref, one.commit, one.changed) for one in returned)

    def _run_gate(self, playbook: Playbook) -> GateResult:
        assert self._directory is not None
        workspace = self._gathered.repository
        path = Path(playbook.source)
        context = GateContext(
            extra_vars=dict(self._plan.profile.vars),
            roots=(path.resolve().parent, *((workspace.root,) if workspace else ())),
            artifacts=self._directory.path / "artifacts" / playbook.name,
            owner=(self._plan.facts.owner_uid, self._plan.facts.owner_gid),
            environment=self._environment,
            mask=self._mask,
            on_event=self._hear_gate,
            gate_timeout=self._plan.profile.gate_timeout,
        )
        return run_playbook(playbook, self._instance.connect(), context)

    def _run_workload(self) -> None:
        workload = self._plan.profile.workload
        if workload is None:
            return
        with self._phase("workload"):
            self._workload = run_workload(
                self._instance.connect(),
                workload,
                environment=self._environment,
                chdir=self._plan.profile.workspace.target if self._plan.profile.workspace else None,
                mask=self._mask,
                on_output=self._listener.output,
            )

    # -- backward ---------------------------------------------------------------------------------------------------

    def _keep_evidence(self) -> None:
        assert self._directory is not None
        if self._instance.paths.guard.exists():
            with contextlib.suppress(KtrdrError):
                ask_guard(self._instance.paths.guard, "flush")
        self._directory.keep_console(self._instance.paths.console)

    def _destroy(self) -> tuple[tuple[str, ...], KtrdrError | None]:
        """Residue, and what went wrong. The ledger was read before: its directory goes."""
        try:
            with self._phase("destroy"):
                self._instance.destroy(notify=self._hear_resource)
        except ResidueError as error:
            return error.left, error
        except KtrdrError as error:
            return (f"unknown: {error.message}",), error
        return (), None

    def _keeps(self, failed: bool) -> bool:
        try:
            if self._instance.journal is None:
                return False
        except KtrdrError:
            return False  # one that cannot be read keeps nothing
        if self._plan.profile.mode == "interactive":
            return True
        return self._options.keep == "always" or (self._options.keep == "on-failure" and failed)

    # -- results ----------------------------------------------------------------------------------------------------

    def _passed(self) -> bool:
        workload_passed = self._workload is None or self._workload.outcome == "passed"
        return workload_passed and all(gate.outcome == "passed" for gate in self._gates)

    def _exit_code(self, interrupted: bool, residue: tuple[str, ...], error: KtrdrError | None) -> int:
        if interrupted:
            return 130
        if residue:
            return ResidueError.exit_code
        if error is not None:
            return error.exit_code
        return 0 if self._passed() else 1

    def _describe_image(self) -> dict[str, Any]:
        if self._image is None:
            return {}
        return {
            "name": self._image.name,
            "digest": self._image.digest,
            "content_digest": self._image.content_digest,
            **self._image.manifest,
        }

    def _write_report(self, report: RunReport) -> None:
        assert self._directory is not None
        self._directory.event("run_finished", outcome=report.outcome, exit_code=report.exit_code, residue=list(report.residue))
        self._directory.write("report.json", render_report_json(report))
        self._directory.write("junit.xml", render_junit(report))
        self._directory.write("report.html", render_html(report))
        self._directory.close()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        assert self._directory is not None
        self._listener.phase(name)
        self._directory.event("phase_started", phase=name)
        phase = Phase(name, "failed", now(), 0.0)
        began = time.monotonic()
        try:
            yield
            phase = replace(phase, outcome="ok")
        finally:
            phase = replace(phase, duration_s=round(time.monotonic() - began, 3))
            self._phases.append(phase)
            self._directory.event("phase_finished", phase=name, outcome=phase.outcome, duration_s=phase.duration_s)

    def _hear_resource(self, kind: str, name: str, verb: Verb, seconds: float) -> None:
        assert self._directory is not None
        self._resources.append({"kind": kind, "name": name, "verb": verb, "seconds": f"{seconds:.3f}"})
        self._directory.event("resource", kind=kind, name=name, verb=verb, duration_s=round(seconds, 3))
        self._listener.resource(kind, name, verb, seconds)

    def _hear_gate(self, event: Mapping[str, Any]) -> None:
        assert self._directory is not None
        self._directory.relay(event)
        self._listener.gate_event(event)

    def _read_secret(self, secret: Secret) -> bytes:
        return self._secrets[secret.name]


def _skipped(playbook: Playbook, reason: str) -> GateResult:
    return GateResult(playbook.name, "skipped", now(), 0.0, message=reason)
