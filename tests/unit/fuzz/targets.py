"""Every parser that reads what a guest, a branch or a crash wrote: bytes in, and nothing but its own refusal out.

A target returns, or the bytes are a finding. `test_fuzz.py` tries each a little in every run, `make fuzz` for as long
as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import dns.message
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paramiko.ssh_exception import SSHException

from ktrdr_vm.egress.flow_log import parse_proxy_line
from ktrdr_vm.egress.grant import parse_grant
from ktrdr_vm.egress.ledger import read_kept
from ktrdr_vm.egress.ledger_totals import add_to_totals, is_summed
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.egress.resolver.decisions import Resolver
from ktrdr_vm.egress.resolver.messages import parse_resolver_message
from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.egress.telemetry.bounds import inflate, read_body
from ktrdr_vm.egress.telemetry.messages import Counted
from ktrdr_vm.egress.telemetry.otlp import MAX_BODY, PATHS, REQUESTS, OtlpError, Stamp, stamp_request
from ktrdr_vm.errors import DocumentError, GuestError, HostError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.escalation.inbox_protocol import parse_request
from ktrdr_vm.escalation.packet import PacketError, parse_packet
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.evidence.envelope import open_envelope, sign_payload
from ktrdr_vm.evidence.junit_files import MAX_CASES, read_test_files
from ktrdr_vm.evidence.reader import parse_report
from ktrdr_vm.evidence.statement import read_statement
from ktrdr_vm.gates.container_logs import Failure, gather_containers
from ktrdr_vm.gates.modules.base import ModuleFailure, run_guest_side
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.results import find_message
from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.guest.commits import _check_head, _read_standing
from ktrdr_vm.guest.envelope import find_announcement
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.guest.pump import LimitedSocket
from ktrdr_vm.guest.ssh import Transport
from ktrdr_vm.guest.tar_stream import TarStream, TarStreamError
from ktrdr_vm.host.beneath import check_name
from ktrdr_vm.host.journal import read_journal
from ktrdr_vm.host.libvirt import Libvirt, parse_agent_reply
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.header import parse_format
from ktrdr_vm.places.wire import Lines, check_greeting, parse_error
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.policy.owner_policy import parse_policy
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.report.compare import compare_reports
from ktrdr_vm.report.egress_summary import sum_up_egress
from ktrdr_vm.report.escape import escape_line, escape_text, escape_xml_characters
from ktrdr_vm.report.history import make_history, make_row
from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.json import decode_report, render_report_json
from ktrdr_vm.report.junit import render_junit
from ktrdr_vm.report.ledger_row import check_fields, parse_row
from ktrdr_vm.report.mask import make_mask, mask_values
from ktrdr_vm.report.model import Artifact, GateResult, RunReport, TaskResult
from ktrdr_vm.report.summary import render_summary_text

Target = Callable[[bytes], None]


def profile(data: bytes) -> None:
    try:
        load_profile(data, "p.yaml", _no_parent)
    except DocumentError as error:
        assert error.problems and all(problem.message for problem in error.problems)


def policy(data: bytes) -> None:
    try:
        parse_policy(data, "policy.yaml")
    except DocumentError as error:
        assert error.problems


def report_read_back(data: bytes) -> None:
    """A report that its person may have rewritten: it has the report's shape, or it is refused."""
    try:
        report = parse_report(data, "report.json")
    except UsageError:
        return
    assert decode_report(json.loads(render_report_json(report))) == report
    render_summary_text(report)
    render_html(report)
    compare_reports(report, report)
    make_history([make_row(report)])


def image_header(data: bytes) -> None:
    with contextlib.suppress(ProvisionError):
        disk_format, size = parse_format(data[:512], len(data), "image")
        assert disk_format in ("raw", "qcow2") and size > 0


def playbook(data: bytes) -> None:
    try:
        parse_playbook(data.decode("utf-8", "replace"), "p.yaml")
    except KtrdrError as error:
        assert error.hint


def dns_message(data: bytes) -> None:
    async def never(*_: object, **__: object) -> dns.message.Message:
        raise OSError("no upstream here")

    async def allow(*_: object) -> bool:
        return True

    rules = Rules(compile_policy((EgressRule(host="api.example.com"), EgressRule(host="*.example.org"))), frozenset())
    resolver = Resolver(rules, never, allow, lambda *_, **__: None, lambda: 0.0)  # type: ignore[arg-type]
    reply = asyncio.run(resolver.answer(data))
    if reply is not None:
        assert len(reply) <= 1232 and dns.message.from_wire(reply).id == int.from_bytes(data[:2], "big")


def proxy_line(data: bytes) -> None:
    fields = parse_proxy_line(data)
    assert fields is None or fields["verdict"] in ("allow", "deny")


def tar_stream(data: bytes) -> None:
    names: list[str] = []

    class Receiver:
        def begin(self, name: str, size: int) -> bool:
            assert size >= 0
            names.append(name)
            return not check_name(name)

        def data(self, piece: bytes) -> None:
            assert piece

        def end(self) -> None:
            assert names

        def refuse(self, name: str, reason: str, size: int) -> None:
            assert reason

    stream = TarStream(Receiver())
    try:
        for start in range(0, len(data), 700):
            stream.feed(data[start : start + 700])
    except TarStreamError:
        return


def journal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "journal.json")
        path.write_bytes(data)
        try:
            read_journal(path)
        except KtrdrError as error:
            assert error.hint


def escalation(data: bytes) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        packet = parse_packet(content)
    except PacketError as error:
        assert str(error)
        return
    assert parse_packet(packet.to_json()) == packet
    json.dumps(packet.to_json(), ensure_ascii=False).encode()


def grant(data: bytes) -> None:
    try:
        parse_grant(json.loads(data), 0.0)
    except (ValueError, RecursionError):
        return


def agent_reply(data: bytes) -> None:
    """The first line answers that a script was begun, the second how it ended; whoever asks has no time left."""
    replies = iter(data.decode("utf-8", "replace").split("\n", 1))

    class Agent(Libvirt):
        def agent(self, name: str, execute: str, arguments: dict[str, Any] | None = None, *, timeout: int = 5) -> Any:
            return parse_agent_reply(next(replies, "{}"), name)

        def find(self, name: str) -> DomainFacts:
            return DomainFacts(name, "one", "/", "sandbox", DomainState.RUNNING, persistent=True)

    try:
        assert len(run_script(Agent(), "one", "true", "try", limit=-1.0)) <= 4096
    except GuestError as error:
        assert error.message and error.hint


def announcement(data: bytes) -> None:
    found = find_announcement(data, b"kvm-token")
    assert found is None or b"kvm-token" in data


def junit(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place, "a.xml").write_bytes(data)
        for file in read_test_files([Artifact("a.xml", "/a.xml", len(data), "")], Path(place)):
            assert len(file.cases) <= MAX_CASES and 0 <= file.duration_s < math.inf


def shown_text(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for shown in (escape_text(text), escape_line(text), escape_xml_characters(text)):
        assert not any(ord(character) < 32 and character not in "\n\t" for character in shown) and "\x7f" not in shown
    assert "\n" not in escape_line(text)


def _no_parent(reference: str, _source: str) -> tuple[str, bytes]:
    raise UsageError(f"{reference} is not there", hint="name one that is")


def otlp(data: bytes) -> None:
    """The first byte chooses the signal and the encoding. Whatever comes out has one identity, and it is not the bytes'
    own."""
    choice, body = data[:1] or b"\0", data[1:]
    path = PATHS[choice[0] % 3]
    encoding = "application/json" if choice[0] & 4 else "application/x-protobuf"
    try:
        stamped = stamp_request(path, encoding, body, Stamp("one", "sandbox", "r"))  # type: ignore[arg-type]
    except OtlpError as error:
        assert error.status in (400, 413) and str(error)
        return
    message = REQUESTS[path]()
    message.ParseFromString(stamped.body)
    for group in getattr(message, message.DESCRIPTOR.fields[0].name):
        claimed = [
            (one.key, one.value.string_value) for one in group.resource.attributes if one.key.startswith("ktrdr.")
        ]
        known = {"ktrdr.instance_id": "one", "ktrdr.environment": "sandbox", "ktrdr.run_id": "r"}
        assert dict(claimed) | known == dict(claimed) and len([key for key, _ in claimed if key in known]) == 3


def otlp_body(data: bytes) -> None:
    for read in (lambda: inflate(data, "gzip"), lambda: read_body(io.BytesIO(data), None, "chunked")):
        try:
            assert len(read()) <= MAX_BODY
        except OtlpError as error:
            assert error.status in (400, 413)


def mask(data: bytes) -> None:
    """The first part is a secret, the rest what a guest prints: documents parse and keep their own words."""
    secret, _, said = data.partition(b"\0")
    text = said.decode("utf-8", "replace")
    task = TaskResult("t", "command", "failed", False, "2026-01-01T00:00:00Z", 1.0, message=text, stdout=text)
    report = RunReport(
        "one",
        "r",
        "p",
        "sandbox",
        "",
        "",
        "failed",
        1,
        "2026-01-01T00:00:00Z",
        1.0,
        gates=(GateResult("g", "failed", "", 1.0, (task,)),),
    )
    masked = json.loads(render_report_json(mask_values(report, make_mask([secret]))))
    assert (masked["outcome"], masked["gates"][0]["tasks"][0]["outcome"], masked["instance_id"]) == (
        "failed",
        "failed",
        "one",
    )
    ElementTree.fromstring(render_junit(mask_values(report, make_mask([secret]))))


def ledger_line(data: bytes) -> None:
    """What a child says, and what is read back: a line of the form that readers rely on, or none."""
    row = parse_row(data)
    if row is not None:
        sum_up_egress([row], ())
        assert parse_row(json.dumps(row)) == row
    try:
        fields = json.loads(data)
        written = check_fields(fields) if isinstance(fields, dict) else {}
    except (ValueError, RecursionError):
        return
    line = json.dumps(
        {**written, "time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "dns", "verdict": "deny"}
    )
    assert parse_row(line) is not None


def ledger_totals(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        dropped, totals = Path(place, "old"), Path(place, "totals")
        dropped.write_bytes(data)
        add_to_totals(totals, dropped)
        # The first line is the digest of what was summed.
        assert all(parse_row(line) is not None for line in totals.read_bytes().splitlines()[1:])
        assert is_summed(totals, dropped)


def child_message(data: bytes) -> None:
    """What the processes that read the guest's bytes send to the guard."""
    with contextlib.suppress(ValueError, RecursionError):
        message = parse_resolver_message(data)
        assert type(message).from_json(json.loads(json.dumps(message.to_json()))) == message
    with contextlib.suppress(ValueError, RecursionError):
        request = parse_request(data)
        assert type(request).from_json(json.loads(json.dumps(request.to_json()))) == request
    with contextlib.suppress(ValueError, RecursionError):
        assert all(0 < count < 2**41 for count in Counted.from_json(json.loads(data)).counts.values())


def proxy_sessions(data: bytes) -> None:
    class Said(ProxyControl):
        def ask(self, command: str) -> str:
            return data.decode("utf-8", "replace")

    assert all(one.id.startswith("0x") and 0 <= one.port < 100_000 for one in Said(Path()).list_by_address())
    Said(Path()).count_lost_lines()
    Said(Path()).find_slot("map", "name")


def guest_answer(data: bytes) -> None:
    """What a command prints in the guest: the answer of a module, the list of containers, the branches that came back."""

    class Answering:
        def run(self, command: object, **_: object) -> GuestResult:
            return GuestResult(1, data, data)

    class Counting:
        def run(self, command: object, **_: object) -> GuestResult:
            return GuestResult(0, b"1\n" + data, b"")

    call: Any = SimpleNamespace(guest=Answering(), timeout=1.0, environment={}, become=False)
    with contextlib.suppress(ModuleFailure):
        result = run_guest_side(call, "files", {})
        find_message("stat", result | {"failed": True})
    for guest in (Answering(), Counting()):
        gather_containers(guest, Failure("no such service", "/w"), environment={}, become=False)  # type: ignore[arg-type]
    branch, *counts = _read_standing(data)
    assert branch.isascii() and all(0 <= count < 10**7 for count in counts)
    with contextlib.suppress(GuestError):
        for line in data.split(b"\n"):
            _, source, name = _check_head(line, parse_instance_id("one"))
            assert "\n" not in source and name.isascii() and ".." not in name


def far_end_line(data: bytes) -> None:
    """The first line of another host, which is bounded and an object, or refused."""
    reads, writes = os.pipe()
    try:
        os.write(writes, data[:4096])
        os.close(writes)
        with contextlib.suppress(UsageError, HostError):
            content = Lines(reads, reads, "there").receive(timeout=1)
            check_greeting(content, ("1.0", 1), "there")
            assert content is not None
            assert len(str(parse_error(content.get("error"), "there"))) < 10_000
    finally:
        os.close(reads)


def signed_document(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert open_envelope(data, _KEY.public_key(), "here") == {}, "nothing else was signed"
    with contextlib.suppress(UsageError):
        read_statement(open_envelope(sign_payload(data, _KEY).encode(), _KEY.public_key(), "here"), "here")


_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


class _Packets:
    """A socket that has these bytes to give."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def recv(self, count: int) -> bytes:
        return self._data.read(count)

    def send(self, data: bytes) -> int:
        return len(data)

    def settimeout(self, _seconds: float) -> None: ...
    def close(self) -> None: ...


def ssh_packet(data: bytes) -> None:
    """Packets before any key, as the thread of the connection reads them: whatever ends it is an error that callers
    expect."""
    transport: Any = Transport(LimitedSocket(_Packets(b"SSH-2.0-x\r\n" + data)))  # type: ignore[arg-type]
    # Without its timer, which would be a thread.
    transport.packetizer.start_handshake = lambda _seconds: None
    transport.active = True
    transport.run()
    assert isinstance(transport.get_exception(), OSError | EOFError | SSHException | None)


def run_end(data: bytes) -> None:
    """An artifact, a ledger and an escalation of these bytes: every part of a report is made of them, in each of its
    forms."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for name in ("a.xml", "egress.jsonl", "e1.json"):
            (directory / name).write_bytes(data)
        rows = read_kept(directory / "egress.jsonl")
        EscalationStore(directory, "one").list()
        allowed, denied = sum_up_egress(rows, ())
        tests = read_test_files([Artifact("a.xml", "/a.xml", len(data), "")], directory)
        report = RunReport(
            "one",
            "r",
            "p",
            "sandbox",
            "",
            "",
            "passed",
            0,
            "2026-01-01T00:00:00Z",
            1.0,
            allowed=allowed,
            denied=denied,
            tests=tuple(file.sum_up() for file in tests),
        )
        json.loads(render_report_json(report))
        ElementTree.fromstring(render_junit(report, tests))
        render_html(report, tests)


TARGETS: dict[str, Target] = {
    one.__name__: one
    for one in (profile, policy, playbook, dns_message, proxy_line, tar_stream, journal, escalation, grant, agent_reply, announcement, junit, shown_text, otlp, otlp_body, report_read_back, image_header, mask, ledger_line, ledger_totals, ssh_packet, run_end, child_message, proxy_sessions, guest_answer, far_end_line, signed_document)
}  # fmt: skip
SEEDS: dict[str, tuple[bytes, ...]] = {
    "child_message": (
        b'{"note": ["dns", "deny", {"name": "a.example", "rule": "name", "type": "A"}]}',
        b'{"allow": ["a.example", ["198.51.100.1"], 60], "number": 1}',
        b'{"op": "submit", "packet": {}, "suppressed": 0}',
        b'{"accepted": 1, "told": 1}',
    ),
    "proxy_sessions": (
        b"0x55: [x] id=1\n  flags=1\n  frontend=other (id=5 mode=tcp), listener=? (id=1) addr=198.51.100.1:22\n",
        b'found=yes, key="a", value="g1"\nDroppedLogs: 7\n',
    ),
    "guest_answer": (
        b'ktrdr-vm-result:{"changed": true, "stat": {"exists": true}}\n',
        b'[{"Id": "a", "Name": "/b", "State": {"Status": "exited", "Health": {"Log": [{"Output": "x"}]}}, "Config": {}}]',
        b"refs/heads/work\n1\n2\n3\nmade\n",
        b"0123456789abcdef0123456789abcdef01234567 refs/heads/work\n",
    ),
    "far_end_line": (b'{"ktrdr-vm": "1.0", "schema": 1, "error": {"kind": "HostError", "message": "m"}}\n',),
    "signed_document": (
        b'{"_type": "https://in-toto.io/Statement/v1", "subject": [], "predicateType": "x", "predicate": {}}',
        sign_payload(b"{}", Ed25519PrivateKey.from_private_bytes(bytes(32))).encode(),
    ),
    "mask": (b'outcome"\0it says outcome" here', b"failed\0failed"),
    "ledger_line": (
        b'{"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "tls", "verdict": "allow", "port": 443, "count": 2}',
        b'{"name": "a", "addresses": ["198.51.100.1"], "ttl": 1}',
    ),
    "ledger_totals": (
        b'{"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "dns", "verdict": "deny", "name": "a"}\n{',
    ),
    "ssh_packet": (
        bytes.fromhex("0000000c0a") + bytes(20),
        b"\xff\xff\xff\x00" + bytes(64),
        bytes.fromhex("000000040ce7000000000000"),
        # A message for the log that claims to be 1 MiB long.
        bytes.fromhex("0000000c050400000fffff") + bytes(5),
        bytes.fromhex("0000004c0414") + bytes(16) + b"".join(b"\0\0\0\4none" for _ in range(6)) + bytes(60),
    ),
    "run_end": (b'<testsuite><testcase name="a"/></testsuite>',),
    "profile": (
        b".1",
        b"version: 1\nname: p\nimage: x\nextends: base\n",
        b"version: 1\nname: p\nimage: x\negress: {allow: [{host: a.b}]}\n",
    ),
    "report_read_back": (
        render_report_json(
            RunReport("one", "r", "p", "sandbox", "", "", "passed", 0, "2026-01-01T00:00:00Z", 1.0)
        ).encode(),
        b'{"schema_version": 1, "egress": {}, "gates": [{"tasks": [{"evidence": [[]]}]}]}',
    ),
    "image_header": (b"QFI\xfb" + bytes(508), b"KDMV" + bytes(100)),
    "policy": (b"egress: {reserved: ['10.0.0.1:5432']}\n", b"escalations: {wait: 1m}\n"),
    "playbook": (b"- hosts: all\n  tasks:\n    - name: x\n      command: {cmd: 'true'}\n      loop: [1]\n",),
    "dns_message": (
        dns.message.make_query("api.example.com", "A").to_wire(),
        dns.message.make_query("x.example.org", "TXT").to_wire(),
    ),
    "proxy_line": (
        b'{"f":"other","v":"allow","n":"-","a":"198.51.100.1","p":1e999,"u":1,"d":2,"t":"--","m":3}',
        b"[" * 1200,
        b'{"f":"tls","v":"allow","n":"a.b","a":"198.51.100.1","p":443,"u":1,"d":2,"t":"--","m":3}',
    ),
    "tar_stream": (b"name\0" + bytes(507), bytes(1024)),
    "journal": (b'{"schema_version": 2, "instance_id": "one", "plan": {}}',),
    "escalation": (b'{"kind": "network", "options": ["a"], "request": {"host": "a.b"}}',),
    "grant": (b'{"id": "a", "rule": {"host": "a.b", "ports": [443]}, "seconds": 1}',),
    "agent_reply": (
        b'{"return": {"pid": 7}}\n{"return": {"exited": true, "exitcode": 1, "out-data": "aGk=", "err-data": "bm8="}}',
    ),
    "announcement": (b"kvm-token 12 12 12\nrest",),
    "junit": (b'<testsuite><testcase name="a" time="1"><failure message="m">t</failure></testcase></testsuite>',),
    "otlp": (
        b"\0" + bytes.fromhex("0a1a12180a160a0a6b747264722e72756e12080a066d696e652121"),
        b"\4"
        + b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"ab","attributes":[{"key":"ktrdr.run_id","value":{"intValue":"1"}}]}]}]}]}',
        b"\6"
        + b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"kvlistValue":{"values":[{"key":"k"}]}}}]}]}]}',
    ),
    "otlp_body": (gzip.compress(b"x" * 40), b"5\r\nhello\r\n0\r\n\r\n"),
    "shown_text": ("\x1b[2J\u202e".encode(),),
}
