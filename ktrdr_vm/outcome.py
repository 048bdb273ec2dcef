"""What a run found, gathered while it goes on, and the report that is made of it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ktrdr_vm.errors import EscalationStop, KtrdrError, ResidueError
from ktrdr_vm.evidence import RunDirectory, count_traffic, explain_denials, sum_up_egress
from ktrdr_vm.first_lines import find_first_lines
from ktrdr_vm.gather import Gathered
from ktrdr_vm.guest.commits import Returned
from ktrdr_vm.junit_files import read_test_files
from ktrdr_vm.recorder import Recorder
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.model import Commits, GateResult, RunOutcome, RunReport, Verification, WorkloadResult
from ktrdr_vm.stage import Stage

# Paths of a branch that the report lists; its first lines are about all of them.
MAX_CHANGED = 1000


@dataclass
class Results:
    """What has been judged, brought back and left behind until now. `started_at` is UTC, RFC 3339."""

    run_id: str
    started_at: str
    gates: tuple[GateResult, ...] = ()
    workload: WorkloadResult | None = None
    verification: Verification | None = None
    returned: Returned = field(default_factory=Returned)
    residue: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        workload_passed = self.workload is None or self.workload.outcome == "passed"
        return workload_passed and all(gate.outcome == "passed" for gate in self.gates)

    def exit_code(self, error: KtrdrError | None, *, interrupted: bool) -> int:
        """The contract's; where several hold, the one that matters most."""
        if interrupted:
            return 130
        if self.residue:
            return ResidueError.exit_code
        if error is not None:
            return error.exit_code
        return 0 if self.passed else 1


def assemble(
    results: Results,
    stages: Sequence[Stage],
    gathered: Gathered,
    recorder: Recorder,
    *,
    seconds: float,
    error: KtrdrError | None,
    interrupted: bool,
    kept: bool,
) -> RunReport:
    """The report of a run that has ended, of what its VMs, its ledger and its artifacts say. `stages` begin with the workload's VM."""
    stage = stages[0]
    plan = stage.plan
    rows = [row for one in stages for row in one.harvest.ledger or ()]
    allowed, denied = sum_up_egress(rows, results.gates)
    artifacts = tuple(artifact for one in stages for artifact in one.harvest.artifacts)
    outcome: RunOutcome = "passed" if results.passed else "failed"
    if interrupted or error is not None:
        outcome = "interrupted" if interrupted else "escalated" if isinstance(error, EscalationStop) else "error"
    commits = tuple(Commits(one.ref, one.commit, one.changed) for one in results.returned.refs)
    return RunReport(
        instance_id=plan.identity.instance_id,
        run_id=results.run_id,
        profile=plan.profile.name,
        mode=plan.profile.mode,
        plan_digest=plan.digest,
        image_digest=plan.facts.image.digest,
        outcome=outcome,
        exit_code=results.exit_code(error, interrupted=interrupted),
        started_at=results.started_at,
        duration_s=round(seconds, 3),
        base_ref=plan.facts.base_ref,
        base_commit=plan.facts.base_commit,
        phases=tuple(recorder.phases),
        samples=tuple(sample for one in stages for sample in one.sampler.samples),
        gates=explain_denials(count_traffic(results.gates, rows), rows),
        workload=results.workload,
        verification=results.verification,
        allowed=allowed,
        denied=denied,
        escalations=tuple(asked for one in stages for asked in one.harvest.escalations),
        artifacts=artifacts,
        tests=read_test_files(artifacts, recorder.directory.path),
        commits=tuple(replace(one, changed=one.changed[:MAX_CHANGED]) for one in commits),
        first_lines=find_first_lines(commits, gathered, results.verification, results.workload, results.returned),
        residue=results.residue,
        kept=kept,
        resources=tuple(recorder.resources),
        image=_describe_image(stage),
        host={"accelerator": plan.facts.accelerator, "accelerator_reason": gathered.accelerator.reason},
        message=str(error) if error else "",
        hint=error.hint if error else "",
    )


def write_report(directory: RunDirectory, report: RunReport) -> None:
    """Every form of it, and the end of the run directory's writing."""
    directory.event("run_finished", outcome=report.outcome, exit_code=report.exit_code, residue=list(report.residue))
    directory.write("report.json", render_report_json(report))
    directory.write("junit.xml", render_junit(report))
    directory.write("report.html", render_html(report))
    directory.close()


def _describe_image(stage: Stage) -> dict[str, Any]:
    image = stage.image
    if image is None:
        return {}
    return {"name": image.name, "digest": image.digest, "content_digest": image.content_digest, **image.manifest}
