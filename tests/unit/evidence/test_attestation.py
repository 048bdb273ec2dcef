"""A run's verdict about a commit as an in-toto statement: when there is one, what it says, and that standard tools read
it."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.vsa.v1 import vsa_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.evidence.attestation import check_attestation, make_attestation
from ktrdr_vm.evidence.envelope import open_envelope, sign_payload
from ktrdr_vm.evidence.signing_key import find_signing_key
from ktrdr_vm.evidence.statement import make_level, make_statement, read_statement
from ktrdr_vm.host.paths import Home
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.model import GateOutcome, GateResult, RunReport, Verification

COMMIT, BASE = "c" * 40, "b" * 40
AT = "2026-01-01T00:00:00.000Z"


def make_report(outcome: GateOutcome = "passed", **changes: Any) -> RunReport:
    gates = tuple(GateResult(name, outcome, AT, 1.0, stage="verification") for name in ("startability", "unit"))
    judged = Verification("fresh", "one", "refs/heads/x", COMMIT, outcome, outcome, clean=True)
    code = 0 if outcome == "passed" else 1
    report = RunReport(
        "one",
        "r1",
        "p",
        "sandbox",
        "a" * 64,
        "d" * 64,
        "passed",
        code,
        AT,
        61.5,
        base_commit=BASE,
        gates=gates,
        verification=judged,
    )
    return replace(report, **changes)


def make_files(
    tmp_path: Path, report: RunReport | None = None, files: dict[str, str] | None = None
) -> tuple[Path, Path]:
    """An attestation, and the public key of its signer."""
    home = Home(tmp_path)
    made = make_attestation(report or make_report(), home, OwnerPolicy(), files)
    assert made is not None
    (tmp_path / "attestation.intoto.json").write_text(made)
    return tmp_path / "attestation.intoto.json", home.attestation_public_key


def test_what_was_attested_is_checked(tmp_path: Path) -> None:
    found = check_attestation(*make_files(tmp_path), commit=COMMIT[:12])
    assert (found.result, found.commit, found.base, found.time) == ("PASSED", COMMIT, BASE, "2026-01-01T00:01:01Z")
    assert found.levels == ("KTRDR_VM_GATE_STARTABILITY", "KTRDR_VM_GATE_UNIT") and found.plan_digest == "a" * 64


def test_the_commit_has_the_digests_of_plan_and_image() -> None:
    statement = json.loads(make_statement(make_report(), {"b": "e" * 64, "a": "f" * 64}) or b"")
    commit, *files = statement["subject"]
    assert commit["digest"] == {"gitCommit": COMMIT}
    assert (commit["annotations"]["planDigest"], commit["annotations"]["imageDigest"]) == ("a" * 64, "d" * 64)
    assert [(one["name"], one["digest"]) for one in files] == [
        ("a", {"sha256": "f" * 64}),
        ("b", {"sha256": "e" * 64}),
    ]


def test_failed_gates_are_attested_as_failed(tmp_path: Path) -> None:
    found = check_attestation(*make_files(tmp_path, make_report("failed")))
    assert (found.result, found.levels, found.passed) == ("FAILED", ("FAILED",), False)


def judged(**changes: Any) -> dict[str, Any]:
    return {
        "verification": replace(Verification("fresh", "one", "", COMMIT, "passed", "passed", clean=True), **changes)
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"verification": None}, judged(mode="same"), judged(clean=False), judged(commit=""), judged(outcome="error"), judged(outcome="skipped"),
        {"exit_code": 3}, {"exit_code": 5}, {"exit_code": 130}, {"base_commit": ""},
    ],
    ids=["no verification", "same VM", "uncommitted files", "no commit", "error", "skipped", "error of the run", "residue", "interrupted", "no base"],
)  # fmt: skip
def test_there_is_no_attestation_without_a_verdict_on_a_commit_alone(changes: dict[str, Any]) -> None:
    assert make_statement(make_report(**changes)) is None


def test_a_passed_verdict_of_a_failed_run_is_no_pass() -> None:
    """A workload that failed, for example: the gates of the commit passed, and the run did not."""
    assert make_statement(make_report(exit_code=1)) is None


# -- standard tools ----------------------------------------------------------------------------------------------------


def test_securesystemslib_checks_the_envelope(tmp_path: Path) -> None:
    file, public = make_files(tmp_path)
    key = load_pem_public_key(public.read_bytes())
    known = SSlibKey.from_crypto(key, keyid=json.loads(file.read_text())["signatures"][0]["keyid"])
    assert Envelope.from_dict(json.loads(file.read_text())).verify([known], 1)
    data = json.loads(file.read_text())
    data["payload"] = base64.b64encode(base64.b64decode(data["payload"]).replace(b"PASSED", b"FAILED")).decode()
    with pytest.raises(VerificationError):
        Envelope.from_dict(data).verify([known], 1)


def test_the_library_of_in_toto_reads_the_statement_and_the_summary() -> None:
    statement = json.loads(make_statement(make_report(), {"report.json": "e" * 64}) or b"")
    Statement.copy_from_pb(ParseDict(statement, statement_pb2.Statement())).validate()
    # SLSA's document says that the levels are a list; the library declares them as one text.
    assert statement["predicate"].pop("verifiedLevels") == ["KTRDR_VM_GATE_STARTABILITY", "KTRDR_VM_GATE_UNIT"]
    summary = ParseDict(statement["predicate"], vsa_pb2.VerificationSummary())
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert summary.verification_result == "PASSED" and summary.policy.digest["gitCommit"] == BASE
    assert summary.resource_uri == f"gitoid:commit:sha1:{COMMIT}" and summary.time_verified.ToSeconds() > 0


def test_an_envelope_of_securesystemslib_is_opened() -> None:
    signer = CryptoSigner(key := Ed25519PrivateKey.generate(), SSlibKey.from_crypto(key.public_key()))
    envelope = Envelope(b'{"a": 1}', "application/vnd.in-toto+json", {})
    envelope.sign(signer)
    assert open_envelope(json.dumps(envelope.to_dict()).encode(), key.public_key(), "x") == {"a": 1}


# -- hostile statements ------------------------------------------------------------------------------------------------


def change(path: str, value: Any) -> dict[str, Any]:
    """The statement with another value at a dotted path; None removes it."""
    statement = json.loads(make_statement(make_report(), {"report.json": "e" * 64}) or b"")
    *parents, last = path.split(".")
    here: Any = statement
    for part in parents:
        here = here[int(part)] if part.isdigit() else here[part]
    if value is None:
        del here[int(last) if last.isdigit() else last]
    else:
        here[int(last) if last.isdigit() else last] = value
    return statement


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"), ("predicateType", "https://slsa.dev/provenance/v1"), ("predicateType", None),
        ("predicate", None), ("predicate", []), ("subject", {}), ("subject", []), ("subject.0", None), ("subject.0.digest", {"sha1": COMMIT}),
        ("subject.0.digest", {"gitCommit": COMMIT, "sha256": "e" * 64}), ("subject.0.digest.gitCommit", "HEAD"), ("subject.1", "report.json"),
        ("subject.1.digest.sha256", "e"), ("subject.1.digest.sha256", 5), ("subject.1", {"name": "x", "digest": {"gitCommit": COMMIT}}),
        ("predicate.verifier.id", "https://example.com"), ("predicate.resourceUri", f"gitoid:commit:sha1:{BASE}"),
        ("predicate.verificationResult", "passed"), ("predicate.verifiedLevels", [{}]), ("predicate.verifiedLevels", None),
        ("predicate.timeVerified", 5), ("predicate.policy.digest.gitCommit", "main"), ("predicate.policy", None),
    ],
)  # fmt: skip
def test_a_statement_of_another_form_is_refused(path: str, value: Any) -> None:
    with pytest.raises(UsageError, match="this attestation is refused"):
        read_statement(change(path, value), "x")


def test_two_files_of_one_name_are_refused() -> None:
    statement = change("subject.1.name", "report.json")
    statement["subject"].append({"name": "report.json", "digest": {"sha256": "f" * 64}})
    with pytest.raises(UsageError, match="distinct names"):
        read_statement(statement, "x")


def test_another_commit_or_key_is_refused(tmp_path: Path) -> None:
    file, public = make_files(tmp_path)
    # An empty one is a variable that a job has not set.
    for commit in ("d" * 40, COMMIT[:6], "c" * 41, ""):
        with pytest.raises(UsageError, match="about the commit"):
            check_attestation(file, public, commit=commit)
    (tmp_path / "other").mkdir()
    _, other = make_files(tmp_path / "other")
    with pytest.raises(UsageError, match="another key signed it"):
        check_attestation(file, other)


# -- files of a bundle -------------------------------------------------------------------------------------------------

SHA_OF_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Path, Path]:
    folder = tmp_path / "bundle"
    (folder / "patches").mkdir(parents=True)
    (folder / "patches" / "1.patch").write_text("hello")
    file, public = make_files(tmp_path, files={"patches/1.patch": SHA_OF_HELLO})
    return folder, file, public


def test_the_files_of_a_bundle_are_checked(bundle: tuple[Path, Path, Path]) -> None:
    folder, file, public = bundle
    (folder / "attestation.intoto.json").write_bytes(file.read_bytes())
    assert check_attestation(file, public, folder=folder).files == {"patches/1.patch": SHA_OF_HELLO}


@pytest.mark.parametrize("what", ["changed", "missing", "added", "link", "linked folder"])
def test_other_files_are_refused(bundle: tuple[Path, Path, Path], what: str) -> None:
    folder, file, public = bundle
    patch = folder / "patches" / "1.patch"
    if what == "changed":
        patch.write_text("hellO")
    elif what == "missing":
        patch.unlink()
    elif what == "added":
        (folder / "0.patch").write_text("more")
    elif what == "link":
        patch.rename(folder.parent / "1.patch")
        patch.symlink_to(folder.parent / "1.patch")
    else:
        (folder / "patches").rename(folder.parent / "patches")
        (folder / "patches").symlink_to(folder.parent / "patches")
    with pytest.raises(UsageError):
        check_attestation(file, public, folder=folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("hello")
    (tmp_path / "bundle").mkdir()
    file, public = make_files(tmp_path, files={name: SHA_OF_HELLO})
    with pytest.raises(UsageError):
        check_attestation(file, public, folder=tmp_path / "bundle")


def test_an_attestation_without_files_confirms_no_folder(tmp_path: Path) -> None:
    file, public = make_files(tmp_path)
    with pytest.raises(UsageError, match="names no files"):
        check_attestation(file, public, folder=tmp_path)


# -- the key -----------------------------------------------------------------------------------------------------------


def test_the_key_is_created_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first, second = find_signing_key(home, OwnerPolicy()), find_signing_key(home, OwnerPolicy())
    raw = [one.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()) for one in (first, second)]
    assert raw[0] == raw[1]
    assert (
        home.attestation_key.stat().st_mode & 0o777 == 0o600
        and home.attestation_public_key.stat().st_mode & 0o777 == 0o644
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attestation-key", "attestation-key.pub"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    find_signing_key(Home(tmp_path), OwnerPolicy())
    Home(tmp_path).attestation_key.chmod(0o640)
    with pytest.raises(HostError, match="other users can read"):
        find_signing_key(Home(tmp_path), OwnerPolicy())


@pytest.mark.parametrize("what", ["damaged", "link", "pipe"])
def test_a_damaged_key_is_not_replaced(tmp_path: Path, what: str) -> None:
    path = Home(tmp_path).attestation_key
    if what == "damaged":
        path.write_text("not a key")
        path.chmod(0o600)
    elif what == "link":
        path.symlink_to(tmp_path / "nothing")
    else:
        os.mkfifo(path, 0o600)
    with pytest.raises(HostError, match="cannot be read"):
        find_signing_key(Home(tmp_path), OwnerPolicy())
    assert os.path.lexists(path)


def test_the_key_of_bundles_signs_if_it_is_ed25519(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    place = tmp_path / "bundle-key"
    place.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    place.chmod(0o600)
    file = tmp_path / "a.json"
    file.write_text(make_attestation(make_report(), Home(tmp_path), OwnerPolicy(signing_key=str(place))) or "")
    public = tmp_path / "bundle-key.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" owner@host\n")
    assert check_attestation(file, public).passed
    assert not Home(tmp_path).attestation_key.exists()
    locked = BestAvailableEncryption(b"passphrase")
    place.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, locked))
    file.write_text(make_attestation(make_report(), Home(tmp_path), OwnerPolicy(signing_key=str(place))) or "")
    assert check_attestation(file, Home(tmp_path).attestation_public_key).passed
    assert Home(tmp_path).attestation_key.exists()


@pytest.mark.parametrize("content", [b"", b"ssh-rsa AAAA", b"-----BEGIN PUBLIC KEY-----\n", b"ssh-ed25519 !!!"])
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    file, _ = make_files(tmp_path)
    (tmp_path / "other.pub").write_bytes(content)
    with pytest.raises(UsageError, match="not an Ed25519 public key"):
        check_attestation(file, tmp_path / "other.pub")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("failed", 1)])
def test_the_command_ends_as_the_verdict(tmp_path: Path, outcome: GateOutcome, code: int) -> None:
    file, public = make_files(tmp_path, make_report(outcome))
    done = CliRunner().invoke(
        cli, ["verify-attestation", str(file), "--key", str(public), "--json"], standalone_mode=False
    )
    assert done.return_value == code and json.loads(done.stdout)["result"] == outcome.upper()


def test_control_characters_of_a_signed_statement_are_escaped(tmp_path: Path) -> None:
    statement = change("predicate.verifiedLevels", ["\x1b[2J"])
    (tmp_path / "a.json").write_text(
        sign_payload(json.dumps(statement).encode(), find_signing_key(Home(tmp_path), OwnerPolicy()))
    )
    words = ["verify-attestation", str(tmp_path / "a.json"), "--key", str(Home(tmp_path).attestation_public_key)]
    assert "\x1b" not in CliRunner().invoke(cli, words, standalone_mode=False).stdout


@pytest.mark.parametrize(
    ("gate", "level"), [("unit", "KTRDR_VM_GATE_UNIT"), ("e2e-web.slow", "KTRDR_VM_GATE_E2E_WEB_SLOW")]
)
def test_a_gate_is_a_level(gate: str, level: str) -> None:
    assert make_level(gate) == level
