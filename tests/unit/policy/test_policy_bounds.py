"""The edges of what the owner's policy allows a profile: sizes, lifetimes, roots of mounts, and sources of secrets."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ktrdr_vm.policy.ceiling import Use
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy, parse_policy
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import Secret


def find_places(policy: OwnerPolicy, **part: Any) -> list[str]:
    """The places in a profile with this part that the policy refuses."""
    text = yaml.safe_dump({"version": 1, "name": "p", "image": "debian-13-docker", **part})
    loaded = load_profile(text, "p.yaml", lambda *_: ("", b""))
    return [one.path for one in check_policy(loaded, policy, "/ws")]


@pytest.mark.parametrize(
    ("policy", "name", "most", "more"),
    [
        ("", "vcpus", 16, 17), ("", "memory", "32GiB", "32769MiB"), ("", "disk", "200GiB", "204801MiB"),
        ("resources: {max: {vcpus: 2}}", "vcpus", 2, 3), ("resources: {max: {memory: 3GiB}}", "memory", "3GiB", "3073MiB"),
        ("resources: {max: {disk: 20GiB}}", "disk", "20GiB", "21GiB"),
        # One maximum leaves the others as they are without a policy.
        ("resources: {max: {disk: 20GiB}}", "memory", "32GiB", "33GiB"),
    ],
)  # fmt: skip
def test_a_vm_is_as_large_as_the_owner_lets_it_and_no_larger(
    policy: str, name: str, most: object, more: object
) -> None:
    bound = parse_policy(policy)
    # A disk without a size of its own has the default, which must fit too.
    rest = {"disk": "10GiB"} if name != "disk" else {}
    assert find_places(bound, resources={**rest, name: most}) == []
    assert find_places(bound, resources={**rest, name: more}) == [f"resources.{name}"]


def test_an_instance_lives_as_long_as_the_owner_lets_it() -> None:
    bound = parse_policy("instances: {ttl: 2d}")
    assert (find_places(bound, ttl="48h"), find_places(bound, ttl="49h")) == ([], ["ttl"])
    assert find_places(OwnerPolicy(), ttl="49h") == []


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("/srv/sets", True), ("/srv/sets/one", True), ("/srv/sets-of-others", False), ("/srv", False), ("data", True), ("/ws/data", True),
        ("/wsx", False), ("/etc", False),
    ],
)  # fmt: skip
def test_a_mount_is_beneath_the_workspace_or_a_root(source: str, allowed: bool) -> None:
    found = find_places(parse_policy("mounts: {roots: [/srv/sets]}"), mounts=[{"source": source, "target": "/data"}])
    assert found == ([] if allowed else ["mounts[0].source"])
    # Without roots only the workspace is left.
    alone = find_places(OwnerPolicy(), mounts=[{"source": source, "target": "/data"}])
    assert (alone == []) == (allowed and not source.startswith("/srv"))


SOURCES = "secrets: {env: [CI_TOKEN, 'DEPLOY_*'], files: [/etc/keys/one], commands: [[gh, auth, token]]}"


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ({"env": "KTRDR_X"}, True), ({"env": "KTRDR_"}, True), ({"env": "KTRDR"}, False), ({"env": "CI_TOKEN"}, True), ({"env": "CI_TOKEN2"}, False),
        ({"env": "ci_token"}, False), ({"env": "DEPLOY_"}, True), ({"env": "DEPLOY_KEY"}, True), ({"env": "MY_DEPLOY_KEY"}, False),
        ({"file": "/etc/keys/one"}, True), ({"file": "/etc/keys/one2"}, False), ({"file": "/etc/keys"}, False), ({"file": "/etc/keys/one/two"}, False),
        ({"command": ["gh", "auth", "token"]}, True), ({"command": ["gh", "auth"]}, False),
        ({"command": ["gh", "auth", "token", "--all"]}, False), ({"command": ["gh", "auth", "Token"]}, False),
    ],
)  # fmt: skip
def test_a_secret_has_a_source_that_the_owner_lists_exactly(source: dict[str, Any], allowed: bool) -> None:
    [kind] = source
    found = find_places(parse_policy(SOURCES), secrets=[{"name": "key", "source": source}])
    assert found == ([] if allowed else [f"secrets[0].source.{kind}"])
    default = find_places(OwnerPolicy(), secrets=[{"name": "key", "source": source}])
    assert (default == []) == source.get("env", "").startswith("KTRDR_")


@pytest.mark.parametrize(
    ("use", "covered", "others"),
    [
        (Use(("*",), env="A_*"), [{"env": "A_"}, {"env": "A_B"}], [{"env": "B_A_"}, {"file": "/A_B"}, {"command": ("A_B",)}]),
        (Use(("*",), file="/key"), [{"file": "/key"}], [{"file": "/key2"}, {"env": "key"}, {"command": ("/key",)}]),
        (Use(("*",), command=("gh", "token")), [{"command": ("gh", "token")}], [{"command": ("gh",)}, {"env": "gh"}, {"file": "/gh"}]),
    ],
)  # fmt: skip
def test_a_use_is_of_one_source(use: Use, covered: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert all(use.covers(Secret("key", "/run/secrets/key", **one)) for one in covered)
    assert not any(use.covers(Secret("key", "/run/secrets/key", **one)) for one in others)


@pytest.mark.parametrize(
    ("hosts", "destination", "allowed"),
    [
        (("a.example",), "a.example", True), (("a.example",), "b.a.example", False), (("*.a.example",), "b.a.example", True),
        (("*.a.example",), "a.example", False), (("*.a.example",), "xa.example", False), (("*.a.example",), "*.b.a.example", True),
        (("a.example",), "*.a.example", False), (("*",), "*.com", True), (("*",), "203.0.113.0/24", True), (("*.a.example",), "203.0.113.0/24", False),
    ],
)  # fmt: skip
def test_a_host_of_a_use_is_a_name_a_suffix_or_anywhere(
    hosts: tuple[str, ...], destination: str, allowed: bool
) -> None:
    assert Use(hosts, env="A").reaches(destination) == allowed
