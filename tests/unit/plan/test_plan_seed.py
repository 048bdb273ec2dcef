"""What the seed says to cloud-init."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.cloud_init import render_user_data
from ktrdr_vm.plan.facts import Allocation, Facts, ImageFacts, allocate

FACTS = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("none", "0" * 64, "/nonexistent"))


def render(**changes: Any) -> dict[str, Any]:
    made: Allocation = allocate(0, genid="g", host_key="k", host_public_key="p", login_public_key="l")
    data: dict[str, Any] = yaml.safe_load(render_user_data(parse_instance_id("x"), FACTS, replace(made, **changes)))
    return data


def find_lists(value: object) -> Iterator[list[object]]:
    if isinstance(value, list):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from find_lists(below)


@pytest.mark.parametrize("changes", [{}, {"login_public_key": ""}], ids=["instance", "template"])
def test_no_list_is_empty(changes: dict[str, Any]) -> None:
    """The schema of cloud-init refuses empty ones: it warns, and its status is degraded."""
    found = list(find_lists(render(**changes)))
    assert found and all(found)


def test_without_a_login_there_is_no_key() -> None:
    assert render()["users"][0]["ssh_authorized_keys"] == ["l"]
    assert "ssh_authorized_keys" not in render(login_public_key="")["users"][0]


def test_the_only_host_key_is_that_of_the_plan() -> None:
    """cloud-init generates keys only if it is given none."""
    data = render()
    assert data["ssh_deletekeys"] and data["ssh_keys"] == {"ed25519_private": "k", "ed25519_public": "p"}


def test_the_user_is_the_images_alone_and_its_disk_grows() -> None:
    """`default` in the list would create the user of the publisher too."""
    data = render()
    assert [user["name"] for user in data["users"]] == [FACTS.image.user]
    assert data["users"][0]["sudo"] == "ALL=(ALL) NOPASSWD:ALL" and data["users"][0]["lock_passwd"] is True
    assert data["resize_rootfs"] is True and data["growpart"]["devices"] == ["/"]
