"""`make run` as root in a fresh box, from a clone in root's own closed home, with nothing done by hand."""

from __future__ import annotations

import json

from box.first import First
from box.release import Release
from box.report import Rows


def test_the_main_job_passes_on_a_fresh_host(release: Release, first: First, rows: Rows) -> None:
    assert first.home_mode == "700", "the clone lies beneath a folder that nobody else may enter"
    report = json.loads(first.report) if first.report else {}
    gates = {gate["name"]: gate["outcome"] for gate in report.get("gates", [])}
    note = ", ".join(f"{name} {outcome}" for name, outcome in gates.items()) + (
        ", under KVM" if _accelerator(report) == "kvm" else ""
    )
    rows.add(
        release,
        "the main job",
        list(first.steps),
        list(first.denials),
        passed=first.passed,
        note=note,
        commit=first.commit,
    )
    assert first.code == 0, first.said[-6000:]
    assert gates == {"startability": "passed", "isolation": "passed"}
    assert _accelerator(report) == "kvm"
    assert report["residue"] == [] and "residue: none" in first.said
    assert first.denials == ()
    # libvirt leaves a profile of each domain for ever; ours go with it.
    left = set(first.left.split()) - {
        "/etc/apparmor.d/libvirt:",
        "TEMPLATE.lxc",
        "TEMPLATE.qemu",
        "/var/lib/ktrdr-vm/instances:",
    }
    assert left == set()


def test_it_was_forked_and_doctor_has_nothing_to_say(first: First) -> None:
    assert "the template was saved after" in first.said and "boots without a template" not in first.said
    checks = [line.split() for line in first.doctor.splitlines() if line.strip()]
    assert [words for words in checks if words[0] == "missing"] == []
    warned = {words[1] for words in checks if words[0] == "warning"}
    # A box has little memory, and that is all.
    assert warned <= {"memory"}, first.doctor


def _accelerator(report: dict[str, object]) -> object:
    host = report.get("host")
    return host.get("accelerator") if isinstance(host, dict) else None
