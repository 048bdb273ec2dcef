"""The in-toto statement of a verdict: a commit, and SLSA's verification summary with the gates that passed on it.
Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.report.model import RunReport

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
ATTESTATION = "attestation.intoto.json"
VERIFIER = "pkg:pypi/ktrdr-vm"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEVEL = "KTRDR_VM_GATE_"


@dataclass(frozen=True)
class Summary:
    """A checked statement. `files` are the further subjects with their sha256; `levels` name the gates that passed."""

    result: str
    commit: str
    base: str
    time: str
    levels: tuple[str, ...]
    files: Mapping[str, str]
    plan_digest: str

    @property
    def passed(self) -> bool:
        return self.result == "PASSED"


def make_statement(report: RunReport, files: Mapping[str, str] | None = None) -> bytes | None:
    """The statement about the commit that a run judged in a fresh VM, from its report; `files` are names and
    sha256.

    None if there is no such verdict: no commit alone was judged in a fresh VM, or the run ended otherwise than with
    passed or failed gates.
    """
    judged, base = report.verification, report.base_commit
    if judged is None or not (judged.mode == "fresh" and judged.clean and _COMMIT.fullmatch(judged.commit)):
        return None
    if report.exit_code not in (0, 1) or not _COMMIT.fullmatch(base):
        return None
    passed = report.exit_code == 0 and judged.outcome == "passed"
    if not passed and judged.outcome != "failed":
        return None
    gates = [gate for gate in report.gates if gate.stage == "verification"]
    predicate = {
        "verifier": {"id": VERIFIER},
        "timeVerified": _find_end(report.started_at, report.duration_s),
        "resourceUri": _name_commit(judged.commit),
        "policy": {"uri": _name_commit(base), "digest": {"gitCommit": base}},
        "verificationResult": "PASSED" if passed else "FAILED",
        "verifiedLevels": [make_level(gate.name) for gate in gates if gate.outcome == "passed"]
        if passed
        else ["FAILED"],
        "slsaVersion": "1.0",
    }
    described = {
        "profile": report.profile,
        "planDigest": report.plan_digest,
        "imageDigest": report.image_digest,
    }
    described["version"] = _find_version()
    subject: list[dict[str, Any]] = [
        {"name": _name_commit(judged.commit), "digest": {"gitCommit": judged.commit}, "annotations": described}
    ]
    subject += [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted((files or {}).items())]
    statement = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    return json.dumps(statement, ensure_ascii=True, sort_keys=True).encode()


def read_statement(statement: Mapping[str, Any], where: str) -> Summary:
    """The summary in a statement of this program, whose signature was checked. UsageError says what is wrong with
    it."""
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement.get(key) != wanted:
            raise _refuse(f"its {key} is {str(statement.get(key))[:80]!a}, not {wanted}", where)
    try:
        predicate, subject = statement["predicate"], statement["subject"]
        judged = [one for one in subject if set(one["digest"]) == {"gitCommit"}]
        commits = [one["digest"]["gitCommit"] for one in judged]
        files = {one["name"]: one["digest"]["sha256"] for one in subject if set(one["digest"]) == {"sha256"}}
        if len(commits) != 1 or len(commits) + len(files) != len(subject) or not _COMMIT.fullmatch(commits[0]):
            raise _refuse("its subjects are not one commit and files with distinct names", where)
        if not all(isinstance(name, str) and _SHA256.fullmatch(digest) for name, digest in files.items()):
            raise _refuse("a digest of its files is not a sha256", where)
        if predicate["verifier"]["id"] != VERIFIER or predicate["resourceUri"] != _name_commit(commits[0]):
            raise _refuse("its verifier or its resourceUri does not fit its commit", where)
        levels, result, time = predicate["verifiedLevels"], predicate["verificationResult"], predicate["timeVerified"]
        if (
            result not in ("PASSED", "FAILED")
            or not all(isinstance(level, str) for level in levels)
            or not isinstance(time, str)
        ):
            raise _refuse("its result is neither PASSED nor FAILED, or its levels are not a list of words", where)
        base, plan_digest = predicate["policy"]["digest"]["gitCommit"], judged[0]["annotations"]["planDigest"]
        if not _COMMIT.fullmatch(base) or not isinstance(plan_digest, str):
            raise _refuse("its policy is not a commit, or its plan has no digest", where)
    except (KeyError, TypeError, AttributeError):
        raise _refuse("it is not the statement of a verification summary", where) from None
    return Summary(result, commits[0], base, time, tuple(levels), files, plan_digest)


def make_level(gate: str) -> str:
    """The name of a gate as a verified level: `startability` is KTRDR_VM_GATE_STARTABILITY."""
    return _LEVEL + re.sub(r"[^A-Z0-9]+", "_", gate.upper()).strip("_")


def _name_commit(commit: str) -> str:
    """The commit as a URI of the scheme gitoid."""
    return f"gitoid:commit:{'sha1' if len(commit) == 40 else 'sha256'}:{commit}"


def _find_end(started_at: str, seconds: float) -> str:
    ended = datetime.fromisoformat(started_at) + timedelta(seconds=seconds)
    return ended.isoformat(timespec="seconds").replace("+00:00", "Z")


def _find_version() -> str:
    try:
        return version("ktrdr-vm")
    except PackageNotFoundError:
        return "unknown"


def _refuse(why: str, where: str) -> UsageError:
    return UsageError(
        f"this attestation is refused: {why}",
        where=where,
        hint="ask the owner of the host for an attestation of this version",
    )
