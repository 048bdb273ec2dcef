"""Dashboards and rules ask for metrics that the program emits, and for one instance at a time."""

from __future__ import annotations

import json
import re

import yaml

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.monitoring.metrics import Metrics

FOLDER = PROJECT / "dashboards"
EMITTED = {family.name for family in Metrics().registry.collect()}
BOARD = json.loads((FOLDER / "instance.json").read_text())


def named(text: str) -> set[str]:
    return set(re.findall(r"\bktrdr_vm_[a-z_]+", text))


def test_every_metric_of_a_panel_is_emitted_and_asked_for_one_instance() -> None:
    expressions = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    assert len(expressions) >= 10
    for expression in expressions:
        assert named(expression) and named(expression) <= EMITTED, expression
        assert 'instance_id="$instance_id"' in expression and 'environment="$environment"' in expression, expression


def test_no_variable_means_all_instances_at_once() -> None:
    variables = {one["name"]: one for one in BOARD["templating"]["list"]}
    for name in ("instance_id", "environment"):
        assert variables[name]["includeAll"] is False and variables[name]["multi"] is False


def test_every_metric_of_a_rule_is_emitted() -> None:
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert named(rule["expr"]) and named(rule["expr"]) <= EMITTED, rule["alert"]


def test_the_shared_stack_is_on_loopback_and_has_no_open_administrator() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", ()))
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false" and ":?" in environment["GF_SECURITY_ADMIN_PASSWORD"]
