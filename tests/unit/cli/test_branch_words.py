"""`branch`: the names of the copies, how long the original was paused, and secrets that are read before anything
begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance import branch as module
from ktrdr_vm.instance import instance as instance_module
from ktrdr_vm.instance.branch import Branches, HostInputs
from ktrdr_vm.policy.owner_policy import OwnerPolicy


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> list[bytes]:
    """The secrets with which `one` was branched."""
    read: list[bytes] = []

    def branch(loaded: object, names: Iterable[Identity], inputs: HostInputs, **_: object) -> Branches:
        [secret] = loaded.plan.profile.secrets  # type: ignore[attr-defined]
        read.append(inputs.read_secret(secret))
        return Branches(tuple(one.instance_id for one in names), 0.25)

    home = Home(tmp_path)
    home.create()
    write_instance(home, "one", {"secrets": [{"name": "token", "source": {"env": "KTRDR_TOKEN"}}]})
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setenv("KTRDR_TOKEN", "value")
    monkeypatch.setattr(instance_module, "require_root", lambda: None)
    monkeypatch.setattr("ktrdr_vm.policy.load.read_policy", OwnerPolicy)
    monkeypatch.setattr(module, "branch", branch)
    return read


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, ["branch", "one", *words], standalone_mode=False)


def test_several_are_numbered_and_one_is_not(given: list[bytes]) -> None:
    assert json.loads(call("try", "--count", "3", "--json").stdout)["instances"] == ["try-1", "try-2", "try-3"]
    assert json.loads(call("try", "--json").stdout)["instances"] == ["try"]
    assert given == [b"value"] * 2


def test_it_says_how_long_the_original_was_paused(given: list[bytes]) -> None:
    assert call("try").stderr == "one: paused for 250 ms; running: try\n"


def test_without_the_variable_of_a_secret_nothing_is_begun(given: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KTRDR_TOKEN")
    assert isinstance(error := call("try").exception, UsageError) and "KTRDR_TOKEN" in str(error)
    assert given == []
