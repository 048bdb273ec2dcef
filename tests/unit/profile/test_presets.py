"""The list presets: each is a document of its own, says what it is, and becomes rules that the program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.host.package_sources import PRESETS
from ktrdr_vm.host.paths import PROJECT, find_shipped
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.profile.preset import load_preset

LISTS = sorted((PROJECT / "profiles" / "egress").glob("*.yaml"))
# One host of each that whoever asks for the preset by its name means.
MEANT = {
    "github": ("github.com", 22),
    "gitlab": ("gitlab.com", 22),
    "docker-hub": ("registry-1.docker.io", 443),
    "ghcr": ("ghcr.io", 443),
    "quay": ("quay.io", 443),
    "gitlab-registry": ("registry.gitlab.com", 443),
    "anthropic": ("api.anthropic.com", 443),
    "openai": ("api.openai.com", 443),
    "google": ("generativelanguage.googleapis.com", 443),
}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_shipped_list(path: Path) -> None:
    preset = load_preset(path.read_bytes(), path.name)
    assert preset.name == path.stem and preset.name not in PRESETS
    assert find_shipped("profiles/egress", path.name) == path
    assert len(preset.description) > 20 and preset.description.endswith(".")
    assert all(rule.preset == preset.name and not rule.host.startswith("*.") for rule in preset.rules), (
        "no list hands out a wildcard"
    )
    assert len({rule.host for rule in preset.rules}) == len(preset.rules)
    host, port = MEANT[preset.name]
    assert any(rule.host == host and port in rule.ports for rule in preset.rules)
    policy = compile_policy(preset.rules)
    assert policy.ranges == () and policy.tls_names
    assert f"| `{preset.name}` | {preset.description} |\n" in (PROJECT / "docs" / "egress.md").read_text()


def test_every_list_is_here() -> None:
    assert {path.stem for path in LISTS} == set(MEANT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version: 1\nname: x\nallow: [{host: a.example}]",
        "version: 1\nname: x\ndescription: y\nallow: []",
        "version: 1\nname: x\ndescription: y\nallow: [{cidr: 198.51.100.7/32}]",
        "version: 1\nname: x\ndescription: y\nallow: [{preset: github}]",
        "version: 1\nname: x\ndescription: y\nallow: [{host: a.example, ports: [0]}]",
        "version: 1\nname: ../x\ndescription: y\nallow: [{host: a.example}]",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        load_preset(text, "x.yaml")
