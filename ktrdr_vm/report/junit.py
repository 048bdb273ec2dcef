"""`junit.xml` for CI systems. A suite for each gate and a case for each task, then the JUnit results that tests
wrote in the guest. The name of each suite contains the instance_id, and its properties the observer."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from ktrdr_vm.report.escape import escape_xml_characters
from ktrdr_vm.report.junit_results import TestFile
from ktrdr_vm.report.model import Attachment, GateResult, RunReport, TaskResult, WorkloadResult

_MAX_OUTPUT = 64 * 1024


def render_junit(report: RunReport, test_files: Iterable[TestFile] = ()) -> str:
    """One document for the run. A run that ended with an error has a case for it, even without gates."""
    root = ET.Element("testsuites", {"name": escape_xml_characters(f"ktrdr-vm {report.instance_id} {report.run_id}")})
    for gate in report.gates:
        _add_gate(root, report, gate)
    if report.workload is not None:
        _add_workload(root, report, report.workload)
    for file in test_files:
        _add_test_file(root, report, file)
    trouble = [f"residue: {item}" for item in report.residue]
    if report.outcome in ("error", "interrupted"):
        trouble.insert(0, report.message or report.outcome)
    if trouble:
        suite = _add_suite(root, report, "run", report.started_at, report.duration_s, observed="host")
        case = _add_case(suite, report, "run", "run", report.duration_s)
        _add_text(case, "error", "\n".join([*trouble, report.hint]).strip(), message=trouble[0])
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        counts = {"tests": len(cases)}
        for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            counts[key] = sum(case.find(tag) is not None for case in cases)
        for key, count in counts.items():
            suite.set(key, str(count))
            totals[key] += count
    for key, total in totals.items():
        root.set(key, str(total))
    root.set("time", f"{report.duration_s:.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add_gate(root: ET.Element, report: RunReport, gate: GateResult) -> None:
    suite = _add_suite(root, report, gate.title, gate.started_at, gate.duration_s, observed=gate.observed)
    for task in gate.tasks:
        case = _add_case(suite, report, gate.title, task.name, task.duration_s)
        if task.outcome == "failed":
            _add_text(case, "failure", _explain(task), message=task.message)
        elif task.outcome == "skipped":
            _add_text(case, "skipped", "", message=task.message)
        elif task.outcome in ("ignored", "rescued"):
            _add_text(case, "system-out", f"the task failed, and its failure was {task.outcome}: {_explain(task)}")
        if task.attempts > 1 and task.outcome != "skipped":
            ET.SubElement(
                ET.SubElement(case, "properties"), "property", {"name": "attempts", "value": str(task.attempts)}
            )
    if gate.outcome == "error" or (gate.outcome == "failed" and all(task.outcome != "failed" for task in gate.tasks)):
        _add_text(
            _add_case(suite, report, gate.title, "the gate", gate.duration_s),
            "error",
            gate.message,
            message=gate.message,
        )
    elif gate.outcome == "skipped":
        _add_text(_add_case(suite, report, gate.title, "the gate", 0.0), "skipped", "", message=gate.message)


def _add_workload(root: ET.Element, report: RunReport, workload: WorkloadResult) -> None:
    suite = _add_suite(root, report, "workload", workload.started_at, workload.duration_s, observed=workload.observed)
    case = _add_case(suite, report, "workload", " ".join(workload.command)[:300], workload.duration_s)
    if workload.outcome != "passed":
        _add_text(case, "failure", f"{workload.ended}\n{workload.stdout}\n{workload.stderr}", message=workload.ended)


def _add_test_file(root: ET.Element, report: RunReport, file: TestFile) -> None:
    suite = _add_suite(root, report, file.path, report.started_at, file.duration_s, observed=file.observed)
    for one in file.cases:
        case = _add_case(suite, report, "", one.name, one.duration_s)
        case.set("classname", escape_xml_characters(one.classname))
        if one.outcome != "passed":
            tag = "failure" if one.outcome == "failed" else one.outcome
            _add_text(case, tag, one.text, message=one.message)
    if file.problem:
        _add_text(_add_case(suite, report, file.path, "the file", 0.0), "error", file.problem, message=file.problem)


def _add_suite(
    root: ET.Element, report: RunReport, name: str, started_at: str, duration: float, *, observed: str
) -> ET.Element:
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": escape_xml_characters(f"{report.instance_id}/{name}"),
            "timestamp": escape_xml_characters(started_at),
            "time": f"{duration:.3f}",
            "hostname": escape_xml_characters(report.instance_id),
        },
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in (
        ("instance_id", report.instance_id),
        ("run_id", report.run_id),
        ("plan_digest", report.plan_digest),
        ("observed", observed),
    ):
        ET.SubElement(properties, "property", {"name": key, "value": escape_xml_characters(value)})
    return suite


def _add_case(suite: ET.Element, report: RunReport, gate: str, name: str, duration: float) -> ET.Element:
    names = {"classname": escape_xml_characters(f"{report.instance_id}.{gate}"), "name": escape_xml_characters(name)}
    return ET.SubElement(suite, "testcase", {**names, "time": f"{duration:.3f}"})


def _add_text(case: ET.Element, tag: str, text: str, *, message: str | None = None) -> None:
    attributes = {} if message is None else {"message": escape_xml_characters(message.replace("\n", " "))[:1000]}
    element = ET.SubElement(case, tag, attributes)
    element.text = escape_xml_characters(text[-_MAX_OUTPUT:]) or None


def _explain(task: TaskResult) -> str:
    parts = [task.message, task.where]
    texts = [Attachment("stdout", task.stdout), Attachment("stderr", task.stderr), *task.evidence]
    parts += [f"--- {one.title}\n{one.text}" for one in texts if one.text]
    return "\n".join(part for part in parts if part)
