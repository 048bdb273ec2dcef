"""JUnit files that tests wrote inside the guest, found among the artifacts: read within bounds, counted, and kept for `junit.xml`.

What they say is the guest's word. Counts are of the cases that stand in a file, never of the numbers that its head claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from ktrdr_vm.report.model import Artifact, CaseOutcome, TestCase, TestFile

# One file, all cases of a run, one text and one name: what is above is cut, or the file is named as not counted.
MAX_FILE = 32 * 1024 * 1024
MAX_CASES = 20_000
MAX_TEXT = 8 * 1024
MAX_NAME = 500
# What is looked at for what its first element is.
_TAGS: dict[str, CaseOutcome] = {"failure": "failed", "error": "error", "skipped": "skipped"}
_DEPTH = 50
# Elements of one file, and of one case: small ones cost far more memory and time than bytes.
_MAX_ELEMENTS = 1_000_000
_MAX_WITHIN = 10_000


class _NotJUnitError(Exception):
    """Some other XML: no business of ours."""


def read_test_files(artifacts: Iterable[Artifact], directory: Path) -> tuple[TestFile, ...]:
    """Every JUnit file among the artifacts beneath `directory`, a run's. Other files are passed over, broken ones say why."""
    found: list[TestFile] = []
    left = MAX_CASES
    for artifact in artifacts:
        if artifact.refused or not artifact.path.lower().endswith(".xml"):
            continue
        one = _read(directory / artifact.path, artifact.path, left)
        if one is not None:
            left -= len(one.cases)
            found.append(one)
    return tuple(found)


def _read(path: Path, name: str, most: int) -> TestFile | None:
    """None for XML that is no JUnit."""
    cases: list[TestCase] = []
    try:
        if path.stat().st_size > MAX_FILE:
            return TestFile(name, (), f"larger than {MAX_FILE // 1024 // 1024} MiB, so it was not counted")
        for case in _cases(path):
            if len(cases) == most:
                return TestFile(name, tuple(cases), f"there are more than {MAX_CASES} cases in this run; the rest was not counted")
            cases.append(case)
    except _NotJUnitError:
        return None
    except (ParseError, DefusedXmlException, UnicodeError, ValueError) as error:
        # Something that never said that it is JUnit is somebody's own file.
        return TestFile(name, tuple(cases), f"broken: {error}") if cases else None
    return TestFile(name, tuple(cases))


def _cases(path: Path) -> Iterator[TestCase]:
    """The cases in their order. Only one is in memory at a time, however many there are."""
    parents: list[Element] = []
    inside = seen = within = 0
    for event, element in iterparse(path, events=("start", "end"), forbid_dtd=True):
        if event == "start":
            if not parents and element.tag not in ("testsuites", "testsuite"):
                raise _NotJUnitError
            parents.append(element)
            if len(parents) > _DEPTH:
                raise ValueError(f"elements more than {_DEPTH} deep")
            inside += element.tag == "testcase"
            seen, within = seen + 1, within + 1 if inside else 0
            if seen > _MAX_ELEMENTS or within > _MAX_WITHIN:
                raise ValueError(f"more than {_MAX_ELEMENTS} elements, or {_MAX_WITHIN} in one case")
            continue
        parents.pop()
        if element.tag == "testcase":
            yield _make_case(element)
            inside -= 1
        if not inside and parents:
            # Whatever it was is done with: to search for it among what stands beside it would take longer with each.
            parents[-1].clear()


def _make_case(element: Element) -> TestCase:
    outcome: CaseOutcome = "passed"
    message = text = ""
    for child in element:
        if child.tag in _TAGS:
            outcome = _TAGS[child.tag]
            message = (child.get("message") or "")[:MAX_TEXT]
            text = (child.text or "")[-MAX_TEXT:]
            break
    return TestCase(
        classname=(element.get("classname") or "")[:MAX_NAME],
        name=(element.get("name") or "")[:MAX_NAME],
        outcome=outcome,
        duration_s=_seconds(element.get("time")),
        message=message,
        text=text,
    )


def _seconds(text: str | None) -> float:
    """A claim of the guest's: what is no sensible number is none."""
    try:
        seconds = float((text or "0").replace(",", "")[:30])
    except ValueError:
        return 0.0
    return round(seconds, 3) if math.isfinite(seconds) and 0 <= seconds < 1e7 else 0.0
