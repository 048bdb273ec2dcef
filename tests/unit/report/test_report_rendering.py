"""Reports say what happened, in the contract's form, and nothing that a guest wrote acts in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from ktrdr_vm.guest.artifacts import BroughtBack
from ktrdr_vm.report.escape import escape_line, escape_text
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.junit_results import FailedCase, TestSummary
from ktrdr_vm.report.measurements import Phase
from ktrdr_vm.report.model import (
    Allowance,
    AnswerRow,
    Artifact,
    Attachment,
    Denial,
    EscalationRow,
    GateResult,
    RunReport,
    TaskResult,
    WorkloadResult,
)
from ktrdr_vm.report.pull_request import render_pull_request
from ktrdr_vm.report.summary import format_bytes, format_duration, make_summary, render_summary, render_summary_text
from ktrdr_vm.run.artifact_rows import make_artifacts

EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x00\r\n<script>alert(1)</script>]]>&\ud800\x9b31m{{ 7*7 }}"


def make_task(name: str = "it starts", **changes: object) -> TaskResult:
    settings = {
        "module": "shell",
        "outcome": "ok",
        "changed": False,
        "started_at": "2026-01-01T00:00:00Z",
        "duration_s": 1.5,
    } | changes
    return TaskResult(name=name, **settings)  # type: ignore[arg-type]


def make_report(**changes: object) -> RunReport:
    failed = make_task(
        "API answers",
        outcome="failed",
        message="status 500",
        stderr="boom",
        evidence=(Attachment("container api", "trace"),),
        where="p.yaml:3:5",
    )
    gate = GateResult(
        "startability",
        "failed",
        "2026-01-01T00:00:00Z",
        12.0,
        (make_task(attempts=3), failed, make_task("later", outcome="skipped")),
        "API answers: status 500",
    )
    report = RunReport(
        instance_id="demo",
        run_id="r1",
        profile="startability",
        mode="sandbox",
        plan_digest="sha256:p",
        image_digest="sha256:i",
        outcome="failed",
        exit_code=1,
        started_at="2026-01-01T00:00:00Z",
        duration_s=151.0,
        first_lines=("the playbook was changed",),
        phases=(Phase("create", "ok", "2026-01-01T00:00:00Z", 3.0),),
        gates=(gate,),
        allowed=(Allowance("github.com", "198.51.100.7", 443, "github.com:443", 2, 1500, 20),),
        denied=(Denial("evil.example", "", 443, "not in the allowlist", 3, "t1", "t2", "startability: API answers"),),
        artifacts=(Artifact("artifacts/x", "/w/x", 5, "abc"), Artifact("", "../y", 0, "", refused="`..` in the path")),
    )
    return replace(report, **changes)  # type: ignore[arg-type]


def evil_report() -> RunReport:
    task = make_task(
        EVIL, outcome="failed", message=EVIL, stdout=EVIL, stderr=EVIL, where=EVIL, evidence=(Attachment(EVIL, EVIL),)
    )
    gate = GateResult(EVIL, "failed", EVIL, 1.0, (task, replace(task, outcome="ignored")), EVIL)
    return make_report(
        instance_id=EVIL,
        run_id=EVIL,
        profile=EVIL,
        message=EVIL,
        hint=EVIL,
        first_lines=(EVIL,),
        gates=(gate,),
        phases=(Phase(EVIL, "failed", EVIL, 1.0),),
        workload=WorkloadResult((EVIL,), "failed", 3, EVIL, 1.0, EVIL, EVIL),
        denied=(Denial(EVIL, EVIL, 1, EVIL, 1, EVIL, EVIL, EVIL),),
        allowed=(Allowance(EVIL, EVIL, 1, EVIL, 1),),
        artifacts=make_artifacts([BroughtBack("", EVIL, 0, "", EVIL)]),
        escalations=(
            EscalationRow(EVIL, EVIL, EVIL, EVIL, EVIL, (EVIL,), EVIL, EVIL, EVIL, answer=AnswerRow(EVIL, EVIL, EVIL)),
        ),
        tests=(TestSummary(EVIL, 1, 1, 0, 0, 1.0, (FailedCase(EVIL, EVIL, EVIL),), EVIL),),
        residue=(EVIL,),
        outcome="error",
    )


def acts(text: str) -> list[str]:
    return [
        character
        for character in text
        if (ord(character) < 32 and character not in "\n\t") or character in "\x7f\x9b\u202e\ufeff"
    ]


def test_json_has_the_contracts_fields_first_and_in_order() -> None:
    document = json.loads(render_report_json(make_report()))
    assert list(document)[:17] == [
        "schema_version", "instance_id", "run_id", "profile", "mode", "plan_digest", "image_digest", "outcome", "started_at", "duration_s",
        "phases", "gates", "workload", "egress", "escalations", "artifacts", "residue",
    ]  # fmt: skip
    assert document["schema_version"] == 1
    task = document["gates"][0]["tasks"][1]
    assert {"name", "module", "outcome", "changed", "duration_s", "message", "stdout", "stderr"} <= task.keys()
    assert task["evidence"] == [{"title": "container api", "text": "trace"}]
    assert {"host", "address", "port", "rule", "count", "first_at", "last_at", "during"} <= document["egress"][
        "denied"
    ][0].keys()
    assert document["gates"][0]["observed"] == "guest"
    assert document["egress"]["denied"][0]["observed"] == "host"


def test_each_escalation_is_there_with_its_answer() -> None:
    answered = {"approved": "for this once", "denied": "not yours", "pending": ""}
    rows = tuple(
        EscalationRow(f"e{number}", "one", "network", f"host {number}", state=state, answer=answer)  # type: ignore[arg-type]
        for number, (state, reason) in enumerate(answered.items())
        for answer in (AnswerRow("owner", reason, "t") if reason else None,)
    )
    report = make_report(escalations=rows)
    found = json.loads(render_report_json(report))["escalations"]
    assert [(one["id"], one["state"], (one["answer"] or {}).get("reason", "")) for one in found] == [
        (f"e{number}", state, reason) for number, (state, reason) in enumerate(answered.items())
    ]
    page = render_pull_request(report, {}, ())
    assert all(f"**{state}**" in page and reason in page for state, reason in answered.items())


def test_json_is_ascii_and_keeps_what_was_said() -> None:
    text = render_report_json(evil_report())
    assert text.isascii()
    assert acts(text) == []
    assert json.loads(text)["instance_id"] == EVIL


def test_junit_counts_and_explains() -> None:
    root = ET.fromstring(render_junit(make_report()))
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    (suite,) = root.findall("testsuite")
    assert suite.get("name") == "demo/startability"
    assert {item.get("name"): item.get("value") for item in suite.findall("properties/property")}[
        "instance_id"
    ] == "demo"
    (failure,) = suite.findall("testcase/failure")
    assert failure.get("message") == "status 500"
    assert "trace" in (failure.text or "")
    assert "boom" in (failure.text or "")


def test_junit_is_xml_whatever_the_guest_wrote() -> None:
    text = render_junit(evil_report())
    assert ET.fromstring(text.encode("utf-8")).findall("testsuite")
    assert acts(text) == []


def test_junit_says_errors_of_gates_and_of_the_run() -> None:
    lost = GateResult("startability", "error", "t", 1.0, (make_task(),), "the guest was lost")
    root = ET.fromstring(
        render_junit(make_report(gates=(lost,), outcome="error", message="boot failed", residue=("tap kv0",)))
    )
    assert root.get("errors") == "2"
    assert "tap kv0" in "".join(root.itertext())
    empty = ET.fromstring(render_junit(make_report(gates=(), outcome="error", message="boot failed")))
    assert (empty.get("tests"), empty.get("errors")) == ("1", "1")


def test_summary_has_the_outcome_first_and_residue_last() -> None:
    lines = render_summary_text(make_report()).splitlines()
    assert lines[0].startswith("FAILED  demo")
    assert lines[1] == "the playbook was changed"
    assert lines[-1] == "residue: none"
    text = "\n".join(lines)
    for expected in (
        "status 500",
        "boom",
        "trace",
        "p.yaml:3:5",
        "evil.example:443",
        "during startability: API answers",
        "after 3 attempts",
        "refused",
    ):
        assert expected in text
    assert render_summary_text(make_report(residue=("tap kv0",))).splitlines()[-1] == "residue: tap kv0"


def test_summary_is_painted_for_the_terminal() -> None:
    painted = render_summary(make_report())
    assert painted[0][0] == "bold red"
    assert painted[-1] == ("green", "residue: none")


def test_summary_lines_are_single_and_nothing_acts_in_them() -> None:
    lines = make_summary(evil_report())
    assert all("\n" not in line.text and acts(line.text) == [] for line in lines)


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_says_the_outcome_first_and_needs_nothing_else() -> None:
    text = render_html(make_report())
    page = Page(text)
    assert (
        page.text.index("Failed")
        < page.text.index("API answers")
        < page.text.index("Network")
        < page.text.index("Residue")
    )
    for expected in (
        "status 500",
        "boom",
        "trace",
        "evil.example",
        "github.com",
        "1.5 kB",
        "the playbook was changed",
        "no resource of this instance is left",
    ):
        assert expected in page.text
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "onclick", "onerror"} & set(page.attributes)
    assert render_html(make_report()) == text


def test_page_begins_with_the_last_words_of_a_container_that_ended() -> None:
    ended = "state: exited, exit code 3\nlast lines:\none\ntwo\nno queue is configured\nbye"
    well = "state: running\nlast lines:\nlistening"
    done = "state: exited, exit code 0\nlast lines:\nmigrated"
    evidence = (Attachment("container a", well), Attachment("container d", done), Attachment("container b", ended))
    task = make_task(outcome="failed", message="it did not stay up", evidence=evidence)
    page = render_html(make_report(gates=(GateResult("g", "failed", "t", 1.0, (task,)),)))
    head = page[: page.index("<h2")]
    assert (
        "two\nno queue is configured\nbye</pre>" in head
        and "one" not in head.split("it did not stay up")[1]
        and "listening" not in head
        and "migrated" not in head
    )


def test_page_shows_guest_text_as_text() -> None:
    text = render_html(evil_report())
    assert Page(text).tags.count("script") == 1
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text, "a browser would not run it"
    assert acts(text) == []
    assert "49" not in Page(text).text.replace("1", "")
    text.encode("utf-8")


def test_page_stays_small() -> None:
    tasks = tuple(
        make_task(f"task {n}", outcome="failed" if n % 50 == 0 else "ok", stdout="x" * 25_000) for n in range(2000)
    )
    started = time.monotonic()
    text = render_html(make_report(gates=(GateResult("big", "failed", "t", 1.0, tasks),)))
    assert len(text) < 5_000_000
    assert time.monotonic() - started < 10
    assert "earlier characters are in report.json" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\rb", "a\\rb"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\u200b\ufeff\u2028", "\\u200b\\ufeff\\u2028"),
        ("\x9b1m\x7f\x00", "\\x9b1m\\x7f\\x00"),
        ("\ud800\U000e0041", "\\ud800\\U000e0041"),
        ("ü€漢字🙂", "ü€漢字🙂"),
        ("two\nlines\t.", "two\nlines\t."),
    ],
)
def test_escape_text(text: str, shown: str) -> None:
    assert escape_text(text) == shown


def test_escape_line_is_one_line_and_cut() -> None:
    assert escape_line("a\nb\tc") == "a\\nb\\tc"
    assert escape_line("x" * 5000, limit=10) == "x" * 10 + "…"


def test_formats() -> None:
    assert [format_duration(seconds) for seconds in (0.04, 59.9, 71, 3725)] == [
        "0.0 s",
        "59.9 s",
        "1 min 11 s",
        "1 h 02 min",
    ]
    assert [format_bytes(count) for count in (17, 3200, 1_400_000)] == ["17 B", "3.2 kB", "1.4 MB"]
