"""JUnit files of tests in the guest, found among the artifacts: read within limits, counted, and included in
`junit.xml`.

Their content is not trusted. Counts are those of the cases in a file, and not the numbers in its attributes. A file
whose attributes say more failures than it has is reported as incomplete.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from ktrdr_vm.report.junit_results import CaseOutcome, TestCase, TestFile
from ktrdr_vm.report.model import Artifact

# Limits of one file, all cases of a run, one text and one name. More is cut, or the file is reported as not counted.
MAX_FILE = 32 * 1024 * 1024
MAX_CASES = 20_000
MAX_TEXT = 8 * 1024
MAX_NAME = 500
# Bytes that are searched for the first element.
_TAGS: dict[str, CaseOutcome] = {"failure": "failed", "error": "error", "skipped": "skipped"}
# Runners that write no element for it: GoogleTest, CTest and others (`status`, `result`).
_STATES: dict[str, CaseOutcome] = {
    **dict.fromkeys(("fail", "failed", "failure"), "failed"),
    "error": "error",
    **dict.fromkeys(("skipped", "notrun", "disabled", "ignored", "suppressed", "pending"), "skipped"),
}
_WORST: tuple[CaseOutcome, ...] = ("passed", "skipped", "error", "failed")
_DEPTH = 50
# Some codecs of Python do not decode text, and some are extremely slow; test runners write these encodings.
_ENCODINGS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252"})
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*\bencoding\s*=\s*["']([A-Za-z0-9._-]{1,60})["']""")
_DECLARATION = re.compile(r"<\?xml[^>]*\?>")
_REFERENCE = re.compile(r"&#([xX][0-9a-fA-F]{1,8}|[0-9]{1,8});")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Elements of one file and of one case, because small elements cost much more memory and time than their bytes.
_MAX_ELEMENTS = 1_000_000
_MAX_WITHIN = 10_000


class _NotJUnitError(Exception):
    """The file is XML, but not JUnit."""


def read_test_files(artifacts: Iterable[Artifact], directory: Path) -> tuple[TestFile, ...]:
    """All JUnit files among the artifacts beneath the run `directory`. Other files are skipped; invalid ones have a
    reason."""
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
    """None for XML that is not JUnit. A file that cannot be read to its end keeps the cases until then, with the
    reason."""
    cases: list[TestCase] = []
    failures = _Failures()
    try:
        if path.stat().st_size > MAX_FILE:
            return TestFile(name, (), f"larger than {MAX_FILE // 1024 // 1024} MiB, so it was not counted")
        for case in _cases(_make_plain(path.read_bytes()), failures):
            if len(cases) == most:
                return TestFile(
                    name, tuple(cases), f"the run has more than {MAX_CASES} test cases; the rest was not counted"
                )
            cases.append(case)
    except _NotJUnitError:
        return None
    except DefusedXmlException:
        return TestFile(name, tuple(cases), "not read: it has a DOCTYPE")
    except (ParseError, UnicodeError, ValueError, LookupError, OSError, RecursionError, MemoryError) as error:
        return TestFile(name, tuple(cases), f"broken: {error or type(error).__name__}")
    return TestFile(name, tuple(cases), failures.find_problem())


class _Failures:
    """The failures and errors of one file: those that it contains, and those that the attributes of its outermost
    suites say; also tests of which it contains none."""

    def __init__(self) -> None:
        self._found = self._said = self._level = self._tests = self._cases = 0

    def begin(self, element: Element, level: int) -> None:
        """Note the attributes of a suite that is `level` elements deep, from 1."""
        numbers = [_count(element.get(name)) for name in ("failures", "errors") if element.get(name) is not None]
        # `testsuites` has the sum of its suites, or nothing.
        if numbers and element.tag in ("testsuites", "testsuite") and self._level in (0, level) and level <= 2:
            self._level = level
            self._said += sum(numbers)
        if element.tag in ("testsuites", "testsuite"):
            self._tests = max(self._tests, _count(element.get("tests")))

    def end(self, element: Element) -> None:
        self._found += element.tag in ("failure", "error")
        self._cases += element.tag == "testcase"

    def find_problem(self) -> str:
        if self._said <= self._found:
            return (
                f"its attributes say {self._tests} tests, and it contains none"
                if self._tests > self._cases == 0
                else ""
            )
        return f"its attributes say {self._said} failures and errors, and it contains {self._found}"


def _count(text: str | None) -> int:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else 0


def _make_plain(raw: bytes) -> bytes:
    """As UTF-8 without a declaration, and without characters that XML forbids, such as colour codes. ValueError for an
    encoding that is not one of those that test runners write.
    """
    declared = _DECLARED.match(raw[:200])
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    if not encoding:
        encoding = declared[1].decode("ascii").lower() if declared else "utf-8"
        if encoding not in _ENCODINGS:
            raise ValueError(
                f"its encoding {encoding[:40]!a} is not supported; supported: {', '.join(sorted(_ENCODINGS))}"
            )
    text = raw.decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    # Only at the beginning: a search for the end of each beginning takes days in a file that has only beginnings.
    if declaration := _DECLARATION.match(text):
        text = text[declaration.end() :]
    text = _FORBIDDEN.sub("\ufffd", _REFERENCE.sub(_replace_reference, text))
    return text.encode("utf-8", "replace")


def _replace_reference(found: re.Match[str]) -> str:
    digits = found[1]
    number = int(digits[1:], 16) if digits[0] in "xX" else int(digits)
    return found[0] if number < 0x110000 and not _FORBIDDEN.match(chr(number)) else "\ufffd"


def _cases(raw: bytes, failures: _Failures) -> Iterator[TestCase]:
    """The cases in their order. Only one is in memory at a time."""
    parents: list[Element] = []
    inside = seen = within = 0
    for event, element in iterparse(io.BytesIO(raw), events=("start", "end"), forbid_dtd=True):
        element.tag = element.tag.rpartition("}")[2]
        if event == "start":
            if not parents and element.tag not in ("testsuites", "testsuite"):
                raise _NotJUnitError
            parents.append(element)
            failures.begin(element, len(parents))
            if len(parents) > _DEPTH:
                raise ValueError(f"elements nested more than {_DEPTH} levels deep")
            inside += element.tag == "testcase"
            seen, within = seen + 1, within + 1 if inside else 0
            if seen > _MAX_ELEMENTS or within > _MAX_WITHIN:
                raise ValueError(f"more than {_MAX_ELEMENTS} elements, or more than {_MAX_WITHIN} in one test case")
            continue
        parents.pop()
        failures.end(element)
        if element.tag == "testcase":
            yield _make_case(element)
            inside -= 1
        elif element.tag in ("failure", "error") and not inside:
            # A failure of a whole suite, such as that of a fixture: no case of it ran.
            yield _make_suite_case(parents[-1] if parents else element, element)
        if not inside and parents:
            # Remove the processed element, because the search among its siblings would take longer with each.
            parents[-1].clear()


def _make_suite_case(suite: Element, element: Element) -> TestCase:
    text = (element.text or "")[-MAX_TEXT:]
    return TestCase(
        "", "the suite itself", _TAGS[element.tag], 0.0, message=(element.get("message") or "")[:MAX_TEXT], text=text
    )


def _make_case(element: Element) -> TestCase:
    """The worst of several outcomes, of attributes and elements: a case that was skipped and failed has failed."""
    said = (_STATES.get((element.get(name) or "").lower(), "passed") for name in ("status", "result"))
    outcome: CaseOutcome = max(said, key=_WORST.index)
    message = text = ""
    for child in element:
        tag = child.tag.rpartition("}")[2]
        if tag not in _TAGS:
            continue
        worse = _WORST.index(_TAGS[tag]) - _WORST.index(outcome)
        if worse > 0 or (worse == 0 and not message and not text):
            outcome = _TAGS[tag]
            message = (child.get("message") or "")[:MAX_TEXT]
            text = (child.text or "")[-MAX_TEXT:]
    return TestCase(
        classname=(element.get("classname") or "")[:MAX_NAME],
        name=(element.get("name") or "")[:MAX_NAME],
        outcome=outcome,
        duration_s=_seconds(element.get("time")),
        message=message,
        text=text,
    )


def _seconds(text: str | None) -> float:
    """A number of the guest; 0 if it is not a valid one."""
    try:
        seconds = float((text or "0").replace(",", "")[:30])
    except ValueError:
        return 0.0
    return round(seconds, 3) if math.isfinite(seconds) and 0 <= seconds < 1e7 else 0.0
