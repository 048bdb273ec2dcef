"""The report of a run, created at its end from the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ktrdr_vm.egress.revision import parse_revision
from ktrdr_vm.errors import EscalationStop, KtrdrError, ProvisionError
from ktrdr_vm.evidence.junit_files import read_test_files
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.evidence.statement import ATTESTATION
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.report.egress_summary import count_traffic, explain_denials, sum_up_egress
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.junit_results import TestFile
from ktrdr_vm.report.mask import mask_values
from ktrdr_vm.report.model import (
    Commits,
    InstanceRevision,
    RunOutcome,
    RunReport,
)
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.results import Results
from ktrdr_vm.run.vm import Stage
from ktrdr_vm.run.warnings import find_first_lines

T = TypeVar("T")
# Paths of a branch that the report lists; its first lines consider all of them.
MAX_CHANGED = 1000
_LIMITED = (
    "SIGUSR1 said that the time is nearly over: the run was ended, and what the workload had until then was fetched"
)


@dataclass(frozen=True)
class Assembled:
    """The report of a run, and the JUnit files of its tests with all cases, of which the report has the counts."""

    report: RunReport
    test_files: tuple[TestFile, ...] = ()


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
) -> Assembled:
    """The report of a run that has ended, from its VMs, its ledger and its artifacts. `stages` begin with the
    workload's VM. Every text in it is masked.

    A part that cannot be created is omitted and named in the first lines; the outcome of the run is then an error.
    """
    stage, mask = stages[0], recorder.directory.mask
    plan = stage.plan
    parts = _Parts()
    rows = [row for one in stages for row in one.harvest.ledger or ()]
    allowed, denied = parts.make("the summary of the network", lambda: sum_up_egress(rows, results.gates)) or ((), ())
    artifacts = tuple(artifact for one in stages for artifact in one.harvest.artifacts)
    commits = tuple(Commits(one.ref, one.commit, one.changed) for one in results.returned.refs)
    gates = parts.make(
        "the network beside each task", lambda: explain_denials(count_traffic(results.gates, rows), rows)
    )
    read = parts.make("the test files", lambda: read_test_files(artifacts, recorder.directory.path)) or ()
    # Masked before messages are cut, so that no half of a secret remains.
    test_files = mask_values(read, mask)
    first_lines = parts.make(
        "the first lines",
        lambda: find_first_lines(
            commits, gathered, results.verification, results.workload, results.returned, results.laid
        ),
    )
    error = error or parts.find_error()
    outcome: RunOutcome = "passed" if results.passed else "failed"
    if interrupted or error is not None:
        outcome = "interrupted" if interrupted else "escalated" if isinstance(error, EscalationStop) else "error"
    report = RunReport(
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
        base_ref=gathered.base.name if gathered.base else plan.facts.base_ref,
        base_commit=gathered.base.commit if gathered.base else plan.facts.base_commit,
        phases=tuple(recorder.phases),
        samples=tuple(sample for one in stages for sample in one.sampler.samples),
        gates=results.gates if gates is None else gates,
        workload=results.workload,
        verification=results.verification,
        allowed=allowed,
        denied=denied,
        escalations=tuple(asked for one in stages for asked in one.harvest.escalations),
        artifacts=artifacts,
        tests=tuple(file.sum_up() for file in test_files),
        commits=tuple(replace(one, changed=one.changed[:MAX_CHANGED]) for one in commits),
        first_lines=(*parts.missing, *(first_lines or ())),
        revisions=tuple(_describe_revision(one) for one in stages if one.harvest.revision),
        residue=results.residue,
        kept=kept,
        reason="limit" if results.limited else "",
        resources=tuple(recorder.resources),
        image=_describe_image(stage),
        host={"accelerator": plan.facts.accelerator, "accelerator_reason": gathered.accelerator.reason},
        message=str(error) if error else _LIMITED if results.limited else "",
        hint=error.hint if error else "",
    )
    return Assembled(mask_values(report, mask), test_files)


class _Parts:
    """The parts of a report, each created from untrusted input; a failed one does not affect the others."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def make(self, what: str, make: Callable[[], T]) -> T | None:
        """The result of `make`, or None if it failed."""
        try:
            return make()
        except Exception as caught:  # a reader of untrusted bytes can raise anything
            self.missing.append(f"{what} could not be created: {type(caught).__name__}: {caught}"[:500])
            return None

    def find_error(self) -> KtrdrError | None:
        if not self.missing:
            return None
        return ProvisionError(
            self.missing[0], where="report", hint="this is a bug in ktrdr-vm: please report it with the run directory"
        )


def write_report(directory: RunDirectory, assembled: Assembled, attest: Callable[[RunReport], str | None]) -> None:
    """Write all forms of the report and its attestation, and close the run directory. An error in one form does not
    prevent the others.

    Raises the first error at the end: an OSError of the disk, or the error of a renderer. report.json is written in any
    case that the disk allows, if necessary without the output of the guest.
    """
    report, test_files = assembled.report, assembled.test_files
    met: list[Exception] = []
    ended = {"outcome": report.outcome, "exit_code": report.exit_code, "residue": list(report.residue)}
    steps: list[Callable[[], None]] = [
        lambda: directory.event("run_finished", **ended),
        lambda: _write_json(directory, report, met),
        lambda: directory.write("junit.xml", render_junit(report, test_files)),
        lambda: directory.write("report.html", render_html(report, test_files)),
        # Last: what could not be written is an error of the run, which then has no verdict.
        lambda: None if met else _write_attestation(directory, attest(report)),
        directory.close,
    ]
    for step in steps:
        try:
            step()
        except Exception as caught:
            met.append(caught)
    if met:
        raise met[0]


def _write_attestation(directory: RunDirectory, text: str | None) -> None:
    if text is not None:
        directory.write(ATTESTATION, text)


def _write_json(directory: RunDirectory, report: RunReport, met: list[Exception]) -> None:
    try:
        text = render_report_json(report)
    except Exception as caught:
        met.append(caught)
        message = f"the report could not be rendered: {type(caught).__name__}: {caught}"[:1000]
        bare = replace(
            report, gates=(), workload=None, tests=(), escalations=(), artifacts=(), phases=(), samples=(), image={}
        )
        text = render_report_json(replace(bare, outcome="error", message=message))
    directory.write("report.json", text)


def _describe_revision(stage: Stage) -> InstanceRevision:
    found = parse_revision(stage.harvest.revision)
    return InstanceRevision(stage.plan.identity.instance_id, found.incarnation, stage.plan.digest, found.grants)


def _describe_image(stage: Stage) -> dict[str, Any]:
    image = stage.image
    if image is None:
        return {}
    return {"name": image.name, "digest": image.digest, "content_digest": image.content_digest, **image.manifest}
