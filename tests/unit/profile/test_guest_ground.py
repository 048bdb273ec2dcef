"""What a profile cannot mean is refused at its place: folders that the guest lives on, its identity, sizes and times
that nobody keeps."""

from __future__ import annotations

import pytest
import yaml

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.guest.personalize import make_environment
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.profile.guest_ground import IDENTITY_VARIABLES
from ktrdr_vm.profile.load import load_profile

BASE = {"version": 1, "name": "t", "image": "debian-13-docker"}


def find_problems(**more: object) -> list[str]:
    try:
        load_profile(yaml.safe_dump({**BASE, **more}).encode(), "p.yaml", lambda *_: None)  # type: ignore[arg-type,return-value]
    except DocumentError as error:
        return [problem.path for problem in error.problems]
    return []


SYSTEM = [
    "/etc",
    "/etc/ssl",
    "/usr",
    "/usr/lib",
    "/run",
    "/run/secrets",
    "/proc",
    "/sys",
    "/dev/shm",
    "/boot",
    "/var/lib/docker",
    "/var",
    "/bin",
]


@pytest.mark.parametrize(
    "target", [*SYSTEM, "/home/ktrdr/.ssh", "/usr/local", "/var/lib", "/lib64", "/home", "/root", "/tmp", "/var/tmp"]
)
def test_what_the_guest_lives_on_is_no_target(target: str) -> None:
    assert find_problems(mounts=[{"source": "./data", "target": target}]) == ["mounts[0].target"]
    assert find_problems(workspace={"source": ".", "target": target}) == ["workspace.target"]


@pytest.mark.parametrize(
    "target",
    ["/data", "/workspace", "/home/ktrdr/work", "/opt/x", "/srv", "/mnt/sets", "/usr/local/share/sets", "/var/cache/x"],
)
def test_everything_else_is(target: str) -> None:
    assert find_problems(mounts=[{"source": "./data", "target": target}]) == []


def test_a_mount_does_not_hide_the_login_and_a_workspace_may_be_its_home() -> None:
    assert find_problems(mounts=[{"source": "./data", "target": "/home/ktrdr"}]) == ["mounts[0].target"]
    assert find_problems(workspace={"source": ".", "target": "/home/ktrdr"}) == []


@pytest.mark.parametrize("value", ["a\0b", "x" * 130_000])
def test_what_no_process_can_be_given_is_refused(value: str) -> None:
    assert find_problems(environment={"A": value}) == ["environment.A"]
    assert find_problems(workload={"command": ["make", value]}) == ["workload.command[1]"]


@pytest.mark.parametrize("words", [[""], ["", "x"]])
def test_a_workload_names_a_program(words: list[str]) -> None:
    assert find_problems(workload={"command": words}) == ["workload.command[0]"]
    assert find_problems(workload={"command": ["make", ""]}) == []


@pytest.mark.parametrize("name", [*sorted(IDENTITY_VARIABLES), "PATH", "GIT_DIR", "GIT_WORK_TREE", "IFS", "PWD"])
def test_variables_that_would_have_no_effect_or_break_all_are_refused(name: str) -> None:
    assert find_problems(environment={name: "x"}) == [f"environment.{name}"]


def test_the_identitys_variables_are_those_that_the_program_sets() -> None:
    assert set(make_environment(parse_instance_id("one"), "sandbox", {})) == IDENTITY_VARIABLES


@pytest.mark.parametrize("memory", ["1MiB", "64MiB", "255MiB", "2000TiB", "\uff12GiB"])
def test_sizes_that_no_machine_keeps(memory: str) -> None:
    assert find_problems(resources={"memory": memory}) == ["resources.memory"]


@pytest.mark.parametrize("length", ["367d", "99999d", "99999999d", "9999999h", "\uff11h", "\u0661d"])
def test_times_that_no_clock_keeps(length: str) -> None:
    assert find_problems(ttl=length) == ["ttl"]
    assert find_problems(gate_timeout=length) == ["gate_timeout"]
    assert find_problems(secrets=[{"name": "a", "source": {"env": "KTRDR_A"}, "ttl": length}]) == ["secrets[0].ttl"]


@pytest.mark.parametrize("path", ["/workspace/**/junit*.xml", "/workspace/out-?.log", "/workspace/[ab]"])
def test_a_pattern_among_the_artifacts_is_refused(path: str) -> None:
    assert find_problems(artifacts=["/workspace/out", path]) == ["artifacts[1]"]
