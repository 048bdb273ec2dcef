"""Personal files: each name that the page on the owner's policy lists is refused, in any case of its letters."""

from __future__ import annotations

import re

import pytest

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.policy.owner_policy import OwnerPolicy, refuse_path, refuse_secret
from ktrdr_vm.profile.model import Secret
from ktrdr_vm.profile.personal import find_personal

PAGE = (PROJECT / "docs/owner-policy.md").read_text().partition("## Private files")[2].partition("\n## ")[0]
LISTED = re.findall(r"`([^`]+)`", PAGE.partition("(")[2].partition(")")[0])
HISTORIES = [".bash_history", ".zsh_history", ".sh_history", ".python_history", ".psql_history", ".node_repl_history"]


def test_the_page_lists_names() -> None:
    assert len(LISTED) > 20 and ".*_history" in LISTED


@pytest.mark.parametrize("name", [name for name in LISTED if "*" not in name] + HISTORIES)
def test_every_listed_name_is_personal_wherever_it_stands(name: str) -> None:
    for spelled in (name, name.upper()):
        assert find_personal(("a", spelled, "b")) == spelled and find_personal((spelled,)) == spelled


def test_names_that_projects_use_are_allowed_inside_of_a_shared_folder_and_no_others() -> None:
    allowed = re.findall(r"`([^`]+)`", PAGE.rpartition("common in projects (")[2].partition(")")[0])
    assert {name for name in LISTED if "*" not in name and not find_personal((name,), inside=True)} == set(allowed)
    assert all(find_personal((name,), inside=True) for name in HISTORIES)


@pytest.mark.parametrize(
    "name", ["history", "test_history", "test_history.py", "docs_history", ".gitignore", "ssh", "config"]
)
def test_other_names_are_not(name: str) -> None:
    assert find_personal((name,)) == ""


@pytest.mark.parametrize("name", [*(name for name in LISTED if "*" not in name), ".bash_history", ".git"])
def test_none_is_a_mount_or_a_secret_whatever_the_policy_says(name: str) -> None:
    for path in (f"/srv/{name}", f"/srv/{name}/in", f"/srv/deep/{name}/in"):
        assert refuse_path(path, "/ws", ("/srv", path))
        assert refuse_secret(Secret("key", "/run/secrets/key", file=path), OwnerPolicy(secret_files=(path,)), "/ws")
        inside = path.replace("/srv", "/ws")
        assert refuse_path(inside, "/ws", ("/ws", inside))
        assert refuse_secret(Secret("key", "/run/secrets/key", file=inside), OwnerPolicy(secret_files=(inside,)), "/ws")
    assert not refuse_secret(
        Secret("key", "/run/secrets/key", file="/srv/key"), OwnerPolicy(secret_files=("/srv/key",)), "/ws"
    )
