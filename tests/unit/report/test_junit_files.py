"""JUnit files of the guest's: found, counted by what stands in them, merged; nothing in them acts, and none is too
much."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from test_report_rendering import make_report

from ktrdr_vm.evidence import junit_files
from ktrdr_vm.evidence.junit_files import read_test_files
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.junit_results import TestFile
from ktrdr_vm.report.model import Artifact
from ktrdr_vm.report.summary import render_summary_text

HONEST = b"""<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="4">
<properties><property name="a" value="b"/></properties>
<testcase classname="tests.test_api" name="test_ok" time="0.25"/>
<testcase classname="tests.test_api" name="test_bad" time="1"><failure message="assert 1 == 2">the trace</failure></testcase>
<testcase classname="tests.test_api" name="test_broken"><error message="no fixture"/></testcase>
<testcase classname="tests.test_api" name="test_later"><skipped message="needs a database"/></testcase>
</testsuite></testsuites>"""


def read(directory: Path, content: bytes, name: str = "artifacts/results.xml") -> tuple[TestFile, ...]:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)
    return read_test_files([Artifact(name, f"/workspace/{name}", len(content), "abc")], directory)


def test_cases_are_counted_and_those_that_failed_are_named(tmp_path: Path) -> None:
    [file] = read(tmp_path, HONEST)
    summary = file.sum_up()
    assert (summary.passed, summary.failures, summary.errors, summary.skipped) == (1, 1, 1, 1)
    assert [(case.name, case.message, case.text) for case in file.failed] == [
        ("test_bad", "assert 1 == 2", "the trace"),
        ("test_broken", "no fixture", ""),
    ]
    assert file.duration_s == 1.25 and file.observed == "guest" and not file.problem


def test_a_head_that_lies_changes_no_count(tmp_path: Path) -> None:
    lying = b'<testsuite tests="900" failures="0" errors="0"><testcase name="a"><failure/></testcase></testsuite>'
    [file] = read(tmp_path, lying)
    assert (len(file.cases), file.sum_up().failures) == (1, 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'<testsuite tests="3" failures="2"/>', "its attributes say 2 failures and errors, and it contains 0"),
        (b'<testsuites failures="1"><testsuite failures="1"><testcase name="a"/></testsuite></testsuites>', "say 1 "),
        (b'<testsuites><testsuite errors="1"/><testsuite failures="2"/></testsuites>', "say 3 failures and errors"),
        (b'<testsuite failures="1"><testcase name="a"><failure/><failure/></testcase></testsuite>', ""),
        (b'<testsuite failures="x" errors="-1"><testcase name="a"/></testsuite>', ""),
        (
            b'<testsuites failures="1"><testsuite failures="1"><testcase><error/></testcase></testsuite></testsuites>',
            "",
        ),
    ],
)
def test_failures_that_only_the_attributes_say_are_a_problem(tmp_path: Path, content: bytes, problem: str) -> None:
    [file] = read(tmp_path, content)
    assert problem in file.problem if problem else not file.problem


def test_every_report_says_them_with_who_observed_them(tmp_path: Path) -> None:
    files = read(tmp_path, HONEST)
    report = make_report(tests=tuple(file.sum_up() for file in files))
    [row] = json.loads(render_report_json(report))["tests"]
    assert (row["tests"], row["failures"], row["errors"], row["skipped"], row["observed"]) == (4, 1, 1, 1, "guest")
    root = ET.fromstring(render_junit(report, files))
    suite = next(one for one in root.findall("testsuite") if one.get("name") == "demo/artifacts/results.xml")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "4",
        "1",
        "1",
        "1",
    )
    assert {one.get("name"): one.get("value") for one in suite.iter("property")}["observed"] == "guest"
    assert int(root.get("tests", 0)) == 4 + 3, "merged into the totals of the run"
    assert "1 passed, 1 failed, 1 error, 1 skipped" in render_summary_text(report)
    page = render_html(report, files)
    assert "test_bad" in page and "assert 1 == 2" in page


def test_other_xml_and_what_is_no_xml_are_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, b"<coverage><testcase name='a'/></coverage>") == ()
    assert read(tmp_path, HONEST, "artifacts/results.txt") == ()


def test_a_file_that_breaks_off_counts_what_it_had_and_says_so(tmp_path: Path) -> None:
    [file] = read(tmp_path, HONEST[: HONEST.index(b'name="test_later"')])
    assert len(file.cases) == 3 and file.problem.startswith("broken: ")
    assert "the file" in render_junit(make_report(), (file,))


def test_entities_are_refused_before_they_grow(tmp_path: Path) -> None:
    """Without `forbid_dtd` this file is one case whose name is the host's own file, or ten million letters."""
    laughs = (
        b'<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>'
    )
    [file] = read(tmp_path, laughs)
    assert (file.cases, file.problem) == ((), "not read: it has a DOCTYPE")
    outside = b'<!DOCTYPE t [<!ENTITY f SYSTEM "file:///etc/hostname">]><testsuite><testcase name="x">&f;</testcase></testsuite>'
    [file] = read(tmp_path, outside)
    assert (file.cases, file.problem) == ((), "not read: it has a DOCTYPE")


def test_what_is_too_much_is_cut_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junit_files, "MAX_CASES", 3)
    many = b"<testsuite>" + b"<testcase name='a'/>" * 9 + b"</testsuite>"
    [file] = read(tmp_path, many)
    assert len(file.cases) == 3 and "more than 3 test cases" in file.problem
    monkeypatch.setattr(junit_files, "MAX_FILE", 10)
    [file] = read(tmp_path, many)
    assert not file.cases and "larger than" in file.problem
    deep = b"<testsuite>" * 60 + b"</testsuite>" * 60
    monkeypatch.undo()
    [file] = read(tmp_path, deep)
    assert not file.cases and "deep" in file.problem


def test_a_second_file_has_what_the_first_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junit_files, "MAX_CASES", 5)
    (tmp_path / "a.xml").write_bytes(HONEST)
    (tmp_path / "b.xml").write_bytes(HONEST)
    first, second = read_test_files([Artifact(name, name, 1, "") for name in ("a.xml", "b.xml")], tmp_path)
    assert len(first.cases) == 4 and not first.problem
    assert len(second.cases) == 1 and second.problem


def test_control_sequences_in_names_and_times_that_are_none_do_not_act(tmp_path: Path) -> None:
    [file] = read(
        tmp_path,
        '<testsuite><testcase name="\u202eabc" time="inf"/><testcase name="b" time="-1"/><testcase time="x"/></testsuite>'.encode(),
    )
    assert file.duration_s == 0
    document = render_junit(make_report(), (file,))
    assert "\u202e" not in document and ET.fromstring(document) is not None


@pytest.mark.parametrize(
    "inner", [b"<a/>" * 100_000 + b"<properties/>" * 100_000, b"<testcase>" + b"<a/>" * 100_000 + b"</testcase>"]
)
def test_many_small_elements_cost_neither_hours_nor_gigabytes(tmp_path: Path, inner: bytes) -> None:
    """A megabyte of the first took minutes, and each further one longer: every element was searched for among those
    beside it."""
    began, case = time.process_time(), b'<testcase classname="t" name="first"/>'
    tracemalloc.start()
    try:
        [file] = read(tmp_path, b"<testsuite>" + case + inner + b"</testsuite>")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [one.name for one in file.cases] == ["first"]
    assert ("10000 in one test case" in file.problem) == inner.startswith(b"<testcase>")
    assert most < 8 << 20 and time.process_time() - began < 30


BEGINNINGS = (
    b"<?xml", b"<?xml ", b"<?xml version='1.0' encoding='utf-8'", b"<", b"<a ", b"<a>", b"<!--", b"<![CDATA[", b"]]>",
    b"&#", b"&#x", b"&lt;", b"\n", b"\xef\xbb\xbf", b"<testsuite ", b'<testsuite a="',
)  # fmt: skip


@pytest.mark.parametrize("head", [b"", b"<testsuite>", b"<testsuite><testcase>"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_beginnings_without_an_end_cost_no_time(tmp_path: Path, head: bytes, beginning: bytes) -> None:
    """The end of a declaration was searched for from each beginning of one: 40 s in these 400 KB, days in a file of the
    largest size."""
    began = time.process_time()
    read(tmp_path, head + beginning * (400_000 // len(beginning)))
    assert time.process_time() - began < 10


def test_a_file_of_nothing_but_elements_is_left_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junit_files, "_MAX_ELEMENTS", 1000)
    [file] = read(tmp_path, b"<testsuite><testcase name='first'/>" + b"<a/>" * 1000 + b"</testsuite>")
    assert len(file.cases) == 1 and "more than 1000 elements" in file.problem


CASE = '<testcase name="{name}">{inner}</testcase>'
BROKEN = {
    "a colour code as a reference": (
        '<testsuites><testsuite><testcase name="a"><failure message="x&#27;[31m"/></testcase></testsuite></testsuites>',
        ["failed"],
        "",
    ),
    "behind a case that passes": (
        '<testsuite><testcase name="b"/><testcase name="a"><failure message="x&#x1b;"/></testcase></testsuite>',
        ["passed", "failed"],
        "",
    ),
    "as a byte": ('<testsuite><testcase name="a"><failure>\x1b[31m</failure></testcase></testsuite>', ["failed"], ""),
    "a head alone": ('<testsuites><testsuite name="pytest" tests="3" failures="2">', [], "broken"),
    "empty": ("", [], "broken"),
    "a line break before the declaration": (
        '\n<?xml version="1.0"?><testsuite><testcase name="a"><error/></testcase></testsuite>',
        ["error"],
        "",
    ),
    "a DOCTYPE": ('<!DOCTYPE x><testsuite><testcase name="a"><failure/></testcase></testsuite>', [], "DOCTYPE"),
    "a namespace": (
        '<testsuite xmlns="urn:junit"><testcase name="a"><failure/></testcase></testsuite>',
        ["failed"],
        "",
    ),
    "skipped and failed": (
        '<testsuite><testcase name="a"><skipped/><failure message="m"/></testcase></testsuite>',
        ["failed"],
        "",
    ),
    "failed and skipped": (
        '<testsuite><testcase name="a"><failure message="m"/><skipped/></testcase></testsuite>',
        ["failed"],
        "",
    ),
    "an error of the suite": ('<testsuite><error message="no fixture"/></testsuite>', ["error"], ""),
    "a byte order mark": ('\ufeff<testsuite><testcase name="a"><failure/></testcase></testsuite>', ["failed"], ""),
    "a test that GoogleTest did not run": (
        '<testsuite tests="2"><testcase name="a" status="run"/><testcase status="notrun" result="suppressed"/></testsuite>',
        ["passed", "skipped"],
        "",
    ),
    "states without elements": (
        '<testsuite><testcase status="failed"/><testcase status="Error"/><testcase status="disabled"/></testsuite>',
        ["failed", "error", "skipped"],
        "",
    ),
    "numbers alone": (
        '<testsuites><testsuite tests="5" failures="0"/></testsuites>',
        [],
        "say 5 tests, and it contains none",
    ),
    "no XML": ("\x00\x01 nothing", [], "broken"),
}


def test_the_message_of_a_case_whose_state_says_failed(tmp_path: Path) -> None:
    text = '<testsuite><testcase status="fail"><failure message="one"/><failure message="two"/></testcase></testsuite>'
    [file] = read(tmp_path, text.encode())
    assert [(case.outcome, case.message) for case in file.cases] == [("failed", "one")]


@pytest.mark.parametrize("what", BROKEN)
def test_no_failing_case_vanishes_with_a_file_that_is_not_quite_xml(tmp_path: Path, what: str) -> None:
    """Each is counted, or the file says why it was not."""
    text, outcomes, problem = BROKEN[what]
    [file] = read(tmp_path, text.encode())
    assert [case.outcome for case in file.cases] == outcomes
    assert problem in file.problem and bool(file.problem) == bool(problem)


@pytest.mark.parametrize(
    "encoding", ["foo", "hex", "rot13", "zlib", "mbcs", "utf-7", "idna", "unicode_escape", "utf-16", "undefined"]
)
def test_an_encoding_that_no_runner_writes_is_a_problem_and_no_error(tmp_path: Path, encoding: str) -> None:
    [file] = read(tmp_path, f'<?xml version="1.0" encoding="{encoding}"?><testsuite/>'.encode())
    assert not file.cases and encoding in file.problem


def test_latin_and_utf_16_are_read(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="{}"?><testsuite><testcase name="\u00e9"/></testsuite>'
    for encoding in ("iso-8859-1", "utf-16"):
        [file] = read(tmp_path, text.format(encoding).encode(encoding))
        assert [case.name for case in file.cases] == ["\u00e9"]
