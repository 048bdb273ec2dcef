"""What `plan` says of the ways out: each rule, what is weaker than it looks, and what makes another rule void."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli import plan as plan_command
from ktrdr_vm.cli.main import cli
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, GuestFile, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import build_profile

LIMITED = {"host": "api.example.com", "methods": ["GET"], "paths": ["/v1/"], "base_url_env": "API_URL"}
NEAR, FAR, OTHER = (
    {"cidr": "203.0.113.0/24", "ports": [443]},
    {"cidr": "198.51.100.0/24", "ports": [22, 80]},
    {"cidr": "192.0.2.0/24", "ports": [22]},
)
WARNING = "allows every request to such a host, if one of its addresses is in this range"


def make_plan(*allow: dict[str, Any], mode: str = "enforce", presets: Any = ()) -> Plan:
    document = {"version": 1, "name": "n", "image": "i", "egress": {"allow": list(allow), "mode": mode}}
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d" * 64, "/i"), presets=presets)
    return Plan(build_profile(document), facts, parse_instance_id("one"), document)


def show(plan: Plan, capsys: pytest.CaptureFixture[str]) -> list[str]:
    plan_command._show_egress(plan)
    return capsys.readouterr().out.splitlines()


def test_a_wildcard_is_marked_as_weaker(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(make_plan({"host": "*.example.com"}, {"host": "a.example.com"}), capsys)
    assert [("weaker" in line, line.split()[1]) for line in lines] == [
        (True, "*.example.com:443"),
        (False, "a.example.com:443"),
    ]


@pytest.mark.parametrize("rule", [{"host": "a.example.com"}, NEAR, LIMITED], ids=["host", "range", "requests"])
def test_the_reason_of_a_rule_is_shown(rule: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    reason = "the build asks it"
    [line] = [one for one in show(make_plan({**rule, "reason": reason}), capsys) if one.startswith("  egress ")]
    assert line.endswith(f"  {reason}")


def test_a_range_that_may_hold_a_host_of_a_rule_by_method_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(make_plan(LIMITED, NEAR, FAR, OTHER), capsys)
    marked = [line.split()[2].partition(":")[0] for line in lines if line.startswith("  ! ") and WARNING in line]
    assert marked == [NEAR["cidr"], FAR["cidr"]], lines
    assert "  egress api.example.com:443  GET beneath /v1/, at the URL in API_URL; no connection of its own" in lines
    assert not any(WARNING in line for line in show(make_plan(NEAR, FAR, OTHER), capsys))


def test_the_names_of_a_preset_are_shown_and_in_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    def stand_for(*hosts: str) -> Plan:
        rules = tuple(EgressRule(host=host, preset="forge", reason="preset forge") for host in hosts)
        return make_plan({"preset": "forge"}, presets=(("forge", rules),))

    before, after = stand_for("forge.example"), stand_for("forge.example", "files.example")
    assert [line.split()[1] for line in show(after, capsys)] == ["forge.example:443", "files.example:443"]
    assert before.digest != after.digest == stand_for("forge.example", "files.example").digest


def test_the_files_for_the_package_clients_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = (GuestFile("/etc/pip.conf", "[global]\n", "preset python"),)
    plan = make_plan()
    made = Plan(plan.profile, replace(plan.facts, client_files=files), plan.identity, plan.source)
    gathered = SimpleNamespace(plan=made, repository=None, beyond=(), accelerator=Accelerator("tcg", "x"))
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr("ktrdr_vm.inputs.profile_file.find_profile", lambda *words: words)
    monkeypatch.setattr("ktrdr_vm.inputs.resolve.gather", lambda *_, **__: gathered)
    done = CliRunner().invoke(cli, ["plan", "--workspace", str(tmp_path)], standalone_mode=False)
    assert done.exception is None
    [line] = [line.split() for line in done.stdout.splitlines() if "setting" in line]
    assert line == ["+", "setting", "/etc/pip.conf", *"as on this host: preset python".split()]


def test_observe_mode_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(make_plan({"host": "a.example.com"}, mode="observe"), capsys)
    assert lines[0].startswith("  egress OBSERVE: ") and len(lines) == 2
