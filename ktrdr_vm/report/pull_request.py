"""`PULL_REQUEST.md` for the reviewer, from the report of a run and the notes of the workload. Pure.

Text of the guest is not interpreted as Markdown: short texts are code, long ones fenced blocks. Missing parts are
listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.report.escape import escape_line, escape_text
from ktrdr_vm.report.model import Allowance, Denial, RunReport

COMMITS = "commits.bundle"
"""The Git bundle with the commits, beside the page."""

_MERGE, _NO_PATCH = "a merge has none", "it is empty or too large"
_MAX_ROWS = 50
_NOTES = (
    ("summary.md", "Summary"),
    ("choices.md", "Design decisions"),
    ("spec.md", "Implementation of the specification"),
)


class NotConfirmedError(KtrdrError):
    """The Startability Gate did not pass, so there is no bundle."""

    exit_code = 1


@dataclass(frozen=True)
class Change:
    """One commit of the returned branch: its id, the first line of its message, and the name of its patch, empty if it
    has none."""

    commit: str
    subject: str
    patch: str = ""
    merge: bool = False


def require_startability(report: RunReport) -> None:
    """NotConfirmedError unless the Startability Gate passed on exactly the fetched commits."""
    verification = report.verification
    where = f"{report.instance_id} run {report.run_id}"
    state: str
    if verification is not None:
        state, why = verification.startability, verification.message
    else:
        state = next((gate.outcome for gate in report.gates if gate.name == "startability"), "not run")
        why = next((gate.message for gate in report.gates if gate.name == "startability"), "")
    if state == "skipped" and not any(gate.name == "startability" for gate in report.gates):
        state = "not run"
    if state != "passed":
        shown = f": {escape_line(why)}" if why else ""
        raise NotConfirmedError(
            f"no bundle: the outcome of the Startability Gate on the commits of the run is `{state}`{shown}",
            where=where,
            hint=(
                "`ktrdr-vm report` shows the run; add `startability` to the gates of the profile, correct the failures,"
                " and apply again"
            ),
        )


def make_title(report: RunReport, changes: Iterable[Change]) -> str:
    """The title: the subject of the newest commit, else the instance."""
    subject = next((change.subject for change in changes), "")
    return escape_line(subject, limit=72) or f"Work of {escape_line(report.instance_id, limit=72)}"


def find_missing(report: RunReport, notes: Mapping[str, str], changes: Sequence[Change]) -> list[str]:
    """The missing parts."""
    missing = [f"{name}: the workload did not write it" for name, _ in _NOTES if not notes.get(name, "").strip()]
    if not changes:
        why = "none of the commits that came back was judged" if report.commits else "the workload returned no commit"
        missing.append(f"commits: {why}")
    bare = [one for one in changes if not one.patch]
    missing += [
        f"patch of {one.commit[:12]}: {_MERGE if one.merge else _NO_PATCH}; {COMMITS} has it"
        for one in bare[:_MAX_ROWS]
    ]
    if len(bare) > _MAX_ROWS:
        missing.append(f"patches of {len(bare) - _MAX_ROWS} more commits")
    if report.verification is None:
        missing.append("verification of a workload: the profile has none, so the gates ran on the base commit")
    ran = {gate.name for gate in report.gates if gate.outcome != "skipped"}
    missing += [f"gate {name}: not run" for name in ("unit", "smoke", "isolation") if name not in ran]
    return missing


def render_pull_request(report: RunReport, notes: Mapping[str, str], changes: Iterable[Change]) -> str:
    """The page. `notes` are the files of the workload by name, `changes` the commits, newest first."""
    return "\n".join(_lines(report, notes, tuple(changes))) + "\n"


def _lines(report: RunReport, notes: Mapping[str, str], changes: tuple[Change, ...]) -> Iterator[str]:
    yield f"# {_plain(make_title(report, changes))}"
    yield ""
    for line in report.first_lines:
        yield f"> **Read first:** {_code(line)}"
    yield ""
    yield from _note(notes, *_NOTES[0])
    yield "## Startability: passed"
    yield ""
    yield from _confirmation(report)
    yield ""
    yield "## Gates"
    yield ""
    yield "| gate | where | outcome | tasks | seconds | observed by |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for gate in report.gates:
        good = sum(task.outcome in ("ok", "changed") for task in gate.tasks)
        yield (
            f"| {_code(gate.name)} | {gate.stage} | **{gate.outcome}** | {good} of {len(gate.tasks)} "
            f"| {gate.duration_s:.1f} | {gate.observed} |"
        )
    yield ""
    yield from _tests(report)
    retried = [(gate, task) for gate in report.gates for task in gate.tasks if task.attempts > 1]
    yield from (
        f"- {_code(gate.name)}: {_code(task.name)} took {task.attempts} attempts" for gate, task in retried[:_MAX_ROWS]
    )
    yield ""
    yield from _network(report)
    yield from _escalations(report)
    yield from _note(notes, *_NOTES[1])
    yield from _note(notes, *_NOTES[2])
    yield f"## Commits ({len(changes)})"
    yield ""
    if changes:
        yield f"`git fetch {COMMITS}` gives exactly the commits that were judged; `patches/` is for reading."
        yield ""
    yield from (f"- `{change.commit[:12]}` {_code(change.subject)}" for change in changes[:_MAX_ROWS])
    if len(changes) > _MAX_ROWS:
        yield f"- and {len(changes) - _MAX_ROWS} more, all in `{COMMITS}`"
    yield ""
    yield from _artifacts(report)
    yield "## Missing"
    yield ""
    yield from (f"- {_code(one)}" for one in find_missing(report, notes, changes) or ["nothing"])
    yield ""
    yield "## Trust in this evidence"
    yield ""
    yield (
        "The guest could not change what the **host** observed: network decisions, commits, times, residue. What the"
        " **guest** observed"
    )
    yield "(the output of a gate) is as trustworthy as the VM it ran in. The workload had no access to a fresh VM."
    yield ""
    yield (
        f"Instance {_code(report.instance_id)}, run {_code(report.run_id)}. `SHA256SUMS` covers all other files of this"
        " folder."
    )


def _tests(report: RunReport) -> Iterator[str]:
    """The results in JUnit files of the tests."""
    if not report.tests:
        return
    yield "| JUnit file | passed | failed | errors | skipped | observed by |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in report.tests[:_MAX_ROWS]:
        yield (f"| {_code(row.path)} | {row.passed} | {row.failures} | {row.errors} | {row.skipped} | {row.observed} |")
    yield ""
    for row in report.tests[:_MAX_ROWS]:
        yield from (f"- failed: {_code(' '.join((case.classname, case.name)))}" for case in row.failed[:_MAX_ROWS])
        if row.problem:
            yield f"- {_code(row.path)}: {_code(row.problem)}"
    yield ""


def _confirmation(report: RunReport) -> Iterator[str]:
    verification = report.verification
    if verification is None:
        yield (
            f"The gate passed on {_code(report.base_commit[:12] or 'a workspace without Git')} in a VM that was created"
            " for this run."
        )
    elif verification.mode == "fresh":
        commit, machine = verification.commit[:12], verification.instance_id
        yield (
            f"The gate passed on {_code(commit)}, checked out in a fresh VM ({_code(machine)}) to which the workload"
            " had no access."
        )
    else:
        yield (
            f"The gate passed on {_code(verification.commit[:12])} **in the VM that the workload used, where it was"
            " root. This is weaker.**"
        )
    yield ""
    yield f"- plan {_code(report.plan_digest)}"
    yield f"- image {_code(report.image_digest)}"
    yield (f"- base {_code(report.base_commit or 'none')} {_code(report.base_ref) if report.base_ref else ''}".rstrip())
    yield f"- residue: {', '.join(map(_code, report.residue)) or 'none'}"


def _network(report: RunReport) -> Iterator[str]:
    allowed, denied = report.allowed, report.denied
    yield "## Network, as observed by the host"
    yield ""
    if not allowed and not denied:
        yield "No connection was allowed and none was denied."
        yield ""
        return
    yield "| verdict | destination | times | bytes in | bytes out | during |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for reached in allowed[:_MAX_ROWS]:
        yield f"| allowed | {_place(reached)} | {reached.count} | {reached.bytes_in} | {reached.bytes_out} | |"
    for refused in denied[:_MAX_ROWS]:
        during = _code(refused.during) if refused.during else ""
        yield f"| **denied** | {_place(refused)} | {refused.count} | | | {during} |"
    rest = max(len(allowed) - _MAX_ROWS, 0) + max(len(denied) - _MAX_ROWS, 0)
    if rest:
        yield f"| | and {rest} more, all in `egress.jsonl` | | | | |"
    yield ""


def _escalations(report: RunReport) -> Iterator[str]:
    yield "## Escalations"
    yield ""
    for one in report.escalations[:_MAX_ROWS]:
        reason = one.answer.reason if one.answer is not None else ""
        asked = f"- {_code(one.kind)}: {_code(one.blocked)}"
        yield f"{asked} → **{one.state}** {_code(reason) if reason else ''}".rstrip()
    if not report.escalations:
        yield "None."
    yield ""


def _artifacts(report: RunReport) -> Iterator[str]:
    kept = [row for row in report.artifacts if not row.refused]
    refused = [row for row in report.artifacts if row.refused]
    yield f"## Artifacts ({len(kept)})"
    yield ""
    if kept:
        yield "| file | bytes | sha256 |"
        yield "| --- | --- | --- |"
    yield from (f"| {_code(row.path)} | {row.size} | {_code(row.sha256)} |" for row in kept[:_MAX_ROWS])
    yield from (f"- refused: {_code(row.source)}: {_code(row.refused)}" for row in refused[:_MAX_ROWS])
    yield ""


def _note(notes: Mapping[str, str], name: str, title: str) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    text = escape_text(notes.get(name, "")).strip()
    if not text:
        yield f"The workload wrote no `{name}`."
    else:
        # Longer than any sequence of tildes in it, so that the text cannot end the block.
        fence = "~" * max(3, 1 + max((len(run) for run in re.findall(r"~+", text)), default=0))
        yield from (f"{fence}text", text, fence)
    yield ""


def _place(row: Allowance | Denial) -> str:
    return _code(f"{row.host or row.address}:{row.port}")


def _code(text: str) -> str:
    """A short text as inline code, escaped for one line and for tables."""
    shown = escape_line(str(text), limit=300).replace("`", "'").replace("|", "¦").strip()
    return f"`{shown}`" if shown else "``"


def _plain(text: str) -> str:
    """A title, with Markdown, HTML and mentions escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#@!|&])", r"\\\1", text)
