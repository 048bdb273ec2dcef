"""Whatever a secret is, documents parse, keep their own words, and hold it in no text."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrdr_vm.egress.ledger import Ledger, read_kept
from ktrdr_vm.evidence.run_directory import RunDirectory
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.mask import KEPT, MIN_LENGTH, find_short, make_mask, mask_values
from ktrdr_vm.report.model import (
    Attachment,
    Denial,
    GateResult,
    InstanceRevision,
    RunReport,
    TaskResult,
    WorkloadResult,
)

# Words of ours, and what breaks documents when it is cut out of them as text.
WORDS = [
    b'outcome"', b'"verdict": "allow"', b': "failed"', b"failed", b"paste.example.com", b"instance_id", b'{"time"', b"deny", b"</testcase>",
    b"null", b"&amp;", b"2026-01-01", b"schema_version", b'", "', b"\\n\\n\\n\\n", b"\\\\\\\\", b"\x00\x01\x02\x03", b"\xff\xfe\xfd\xfc\xfb",
]  # fmt: skip
SECRETS = st.lists(st.sampled_from(WORDS) | st.binary(min_size=MIN_LENGTH, max_size=40), min_size=1, max_size=3)
TASK = TaskResult(
    "the API answers",
    "uri",
    "failed",
    False,
    "2026-01-01T00:00:01.000Z",
    1.0,
    stdout="",
    evidence=(Attachment("logs", "x"),),
)
REPORT = RunReport(
    "one", "20260101T000000Z-ab12", "p", "sandbox", "d" * 64, "e" * 64, "failed", 1, "2026-01-01T00:00:00.000Z", 2.0,
    gates=(GateResult("startability", "failed", "2026-01-01T00:00:00.000Z", 1.0, (TASK,)),),
    workload=WorkloadResult(("make",), "failed", 2, "2026-01-01T00:00:00.000Z", 1.0),
    denied=(Denial("paste.example.com", "", 443, "tls: name", 1, "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"),),
)  # fmt: skip


def leaves(value: Any, key: str = "") -> list[str]:
    """Every text of a document that is not one of our own words."""
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in leaves(one, name)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in leaves(one, key)]
    return [value] if isinstance(value, str) and key not in KEPT else []


def shape(value: Any, key: str = "") -> Any:
    """Keys, numbers and our own words."""
    if isinstance(value, dict):
        return {name: shape(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(one, key) for one in value]
    return value if not isinstance(value, str) or key in KEPT else "text"


def with_output(secrets: list[bytes]) -> RunReport:
    said = " ".join(secret.decode("utf-8", "replace") for secret in secrets)
    task = replace(TASK, message=said, stdout=f"a {said} b", name=f"task {said}")
    return replace(REPORT, gates=(replace(REPORT.gates[0], tasks=(task,)),), message=said)


@pytest.mark.parametrize("secret", [b"0f3c", b"9a41c2d37be05f68", b"5a7e9b1d"])
def test_the_revision_of_a_line_stays_whatever_a_secret_is(tmp_path: Path, secret: bytes) -> None:
    """Readers look for the lines of a revision, and omit one that is not valid."""
    revision = "0f3c5a7e9b1d-9a41c2d37be05f68-2"
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    ledger.revise(revision)
    ledger.write("tls", "allow", name="a.example")
    ledger.close()
    directory = RunDirectory(tmp_path / "runs/one/r", "one", (0, 0), make_mask([secret]))
    directory.keep_ledger(read_kept(tmp_path / "egress.jsonl"), add=False)
    assert [row["revision"] for row in read_kept(directory.path / "egress.jsonl")] == [revision]
    found = InstanceRevision("one", "0f3c5a7e9b1d", "9a41c2d37be05f68" * 4, 2)
    assert mask_values(replace(REPORT, revisions=(found,)), make_mask([secret])).revisions == (found,)


@given(SECRETS)
@settings(max_examples=200, deadline=None)
def test_the_report_in_every_form(secrets: list[bytes]) -> None:
    plain = with_output(secrets)
    masked = mask_values(plain, make_mask(secrets))
    document = json.loads(render_report_json(masked))
    assert shape(document) == shape(json.loads(render_report_json(plain)))
    ElementTree.fromstring(render_junit(masked))
    assert render_html(masked).rstrip().endswith("</html>")
    found = leaves(document)
    for secret in secrets:
        text = secret.decode("utf-8", "replace")
        if len(text.strip()) < MIN_LENGTH:
            continue
        # A mark may join with what stands beside it; the value as a whole is in no text of more than the mark.
        assert not [leaf for leaf in found if text in leaf and text not in "***"], text


@given(SECRETS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_and_ledger(tmp_path_factory: pytest.TempPathFactory, secrets: list[bytes]) -> None:
    place = tmp_path_factory.mktemp("run")
    ledger = Ledger(place / "egress.jsonl", "one")
    ledger.write("tls", "allow", name="paste.example.com", address="198.51.100.1", port=443, rule="name", bytes_out=3)
    ledger.write("dns", "deny", name=secrets[0].decode("utf-8", "replace")[:250], rule="name")
    ledger.close()
    run = RunDirectory(place / "runs" / "one" / "r1", "one", (0, 0), make_mask(secrets))
    run.event(
        "task_finished", gate="g", outcome="failed", message=secrets[0].decode("utf-8", "replace"), where=Path("/x")
    )
    rows = read_kept(place / "egress.jsonl")
    run.keep_ledger(rows, add=False)
    run._events.close()
    assert [row["verdict"] for row in rows] == ["allow", "deny"]
    [event] = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["outcome"], event["instance_id"]) == ("task_finished", "failed", "one")
    kept = [json.loads(line) for line in (run.path / "egress.jsonl").read_text().splitlines()]
    assert [shape(row) for row in kept] == [shape(row) for row in rows]


def test_what_is_kept_are_fields_of_ours() -> None:
    """A name in the list that no document has is a mistake in it."""
    kinds = (RunReport, GateResult, TaskResult, WorkloadResult, Denial, InstanceRevision)
    known = {one.name for kind in kinds for one in fields(kind)}
    others = "time event kind verdict state received_at at digest sha256 commit startability stage revision".split()
    assert known | set(others) >= KEPT


def test_a_document_of_a_megabyte_of_lines_is_masked_within_a_second_of_work() -> None:
    import time

    began = time.process_time()
    mask = make_mask([b"\n".join(b"%064d" % number for number in range(1000))])
    mask("x" * 1_000_000)
    assert time.process_time() - began < 5


def test_short_ones_are_named() -> None:
    assert find_short({"a": b"1234567", "b": b"12345678", "c": b" 1234567 "}) == ["a", "c"]
