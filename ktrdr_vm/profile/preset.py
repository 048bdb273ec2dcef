"""A list preset: a named list of hosts, as a YAML document in `profiles/egress/`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.schema import PRESET, check_shape
from ktrdr_vm.profile.strict_yaml import load_yaml


@dataclass(frozen=True)
class Preset:
    """The rules of `{preset: name}` in `egress.allow`."""

    name: str
    description: str
    rules: tuple[EgressRule, ...]


def load_preset(text: str | bytes, source: str) -> Preset:
    """DocumentError with all errors. A list contains host names only, because addresses change."""
    document = load_yaml(text, source)
    problems = check_shape(document, PRESET)
    if problems:
        raise DocumentError(problems, hint="correct the list; docs/egress.md describes its format")
    data = document.data
    return Preset(
        data["name"],
        data["description"],
        tuple(
            EgressRule(
                host=rule["host"],
                ports=tuple(sorted(set(rule.get("ports", [443])))),
                preset=data["name"],
                reason=rule.get("reason", f"preset {data['name']}"),
            )
            for rule in data["allow"]
        ),
    )
