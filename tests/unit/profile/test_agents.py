"""The profiles of agents: the key stays on the host, and the agent has what its client insists on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT, find_shipped, find_shipped_profile
from ktrdr_vm.inputs.resolve import read_profile

PROFILES = sorted((PROJECT / "profiles/agents").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_no_key_goes_into_the_guest(path: Path) -> None:
    profile = read_profile(path, PROJECT).profile
    assert profile.workload is not None and profile.mode == "sandbox" and profile.egress.mode == "enforce"
    assert profile.secrets and all(secret.broker is not None for secret in profile.secrets)
    for secret in profile.secrets:
        assert (
            secret.broker is not None
            and secret.broker.paths == ("/v1/",)
            and set(secret.broker.methods) == {"GET", "POST"}
        )
    # The model is reached through the broker alone.
    assert not [rule for rule in profile.egress.allow if rule.host]
    assert any(value == "brokered" for _, value in profile.environment)
    assert profile.artifacts and all(str(one).startswith("/var/tmp/agent") for one in profile.artifacts)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_each_is_found_by_its_name(path: Path) -> None:
    assert find_shipped_profile(path.stem) == path and find_shipped_profile(path.name) == path


@pytest.mark.parametrize(
    "name", ["../docs/x", "agents/claude-code", "/etc/passwd", "..", "", "../../../../etc/hostname"]
)
def test_a_path_is_no_name_of_a_shipped_document(name: str, tmp_path: Path) -> None:
    assert find_shipped_profile(name) is None and find_shipped("profiles", name) is None
