"""The file of the owner's policy: which one is read, who may be able to change it, and what is allowed without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.policy import load
from ktrdr_vm.policy.owner_policy import EscalationPolicy, OwnerPolicy, parse_policy
from ktrdr_vm.policy.schema import POLICY
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.schema import Schema

PAGE = (PROJECT / "docs/owner-policy.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The owner's file, which does not exist yet, and the configuration of a person beside it."""
    monkeypatch.setattr(load, "POLICY_PATH", str(tmp_path / "etc/policy.yaml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder in ("etc", "config/ktrdr-vm"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def be(monkeypatch: pytest.MonkeyPatch, *, root: bool, world: bool = False) -> None:
    monkeypatch.setattr(load.os, "geteuid", lambda: 0 if root or world else 1000)
    monkeypatch.setattr(load, "in_user_namespace", lambda: world)


@pytest.mark.parametrize(("root", "world"), [(True, False), (False, False), (False, True)])
def test_a_persons_own_policy_counts_without_root_and_without_the_owners(
    place: Path, monkeypatch: pytest.MonkeyPatch, root: bool, world: bool
) -> None:
    be(monkeypatch, root=root, world=world)
    own, owners = place / "config/ktrdr-vm/policy.yaml", place / "etc/policy.yaml"
    assert load.find_policy() == (owners if root else own)
    owners.touch()
    assert load.find_policy() == owners


def test_a_policy_that_cannot_be_looked_for_is_not_taken_for_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, root=False)

    def refuse(self: Path, **_more: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    assert load.find_policy() == place / "etc/policy.yaml"


def test_without_a_file_and_with_an_empty_one_the_defaults_apply(place: Path) -> None:
    assert load.read_policy() == OwnerPolicy()
    (place / "etc/policy.yaml").touch()
    assert load.read_policy() == OwnerPolicy() == parse_policy("# nothing\n")


def test_a_link_is_followed_and_the_folder_that_it_is_in_is_one_above_the_file(place: Path) -> None:
    """Whoever may change that folder may replace the link, by one to any file of root's."""
    (place / "real.yaml").write_text("instances: {max: 3}\n")
    (place / "etc/policy.yaml").symlink_to("../real.yaml")
    assert load.read_policy().most_instances == 3
    (place / "etc").chmod(0o777)
    with pytest.raises(HostError, match="other users can change the owner's policy") as caught:
        load.read_policy()
    assert str(place / "etc") in caught.value.hint


def test_the_folder_of_a_link_in_the_middle_of_the_path_counts_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("open", "real"):
        (place / folder).mkdir()
    (place / "real/policy.yaml").write_text("instances: {max: 3}\n")
    (place / "open/etc").symlink_to(place / "real")
    monkeypatch.setattr(load, "POLICY_PATH", str(place / "open/etc/policy.yaml"))
    assert load.read_policy().most_instances == 3
    (place / "open").chmod(0o770)
    with pytest.raises(HostError, match="other users can change the owner's policy"):
        load.read_policy()


@pytest.mark.parametrize(("mode", "allowed"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_only_root_may_read_the_headers_of_the_collector(tmp_path: Path, mode: int, allowed: bool) -> None:
    path = tmp_path / "headers"
    path.write_text("Authorization: Bearer x\n")
    path.chmod(mode)
    collector = Collector("http", "c.example", 4318, headers_file=str(path))
    if allowed:
        assert load.read_collector_headers(collector) == {"Authorization": "Bearer x"}
    else:
        with pytest.raises(HostError, match="users other than root can read or change"):
            load.read_collector_headers(collector)


# -- the table of the page -------------------------------------------------------------------------------------------

ROWS = {
    name: (kind.strip(), default.strip())
    for names, kind, default, _ in re.findall(r"^\| (`.*?`) \| (.*?) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", names)
}


def list_keys(schema: Schema, above: str = "") -> list[str]:
    """The keys of the schema as the table spells them."""
    found = []
    for name, rule in schema.items():
        inner = rule.get("schema", {})
        if rule["type"] == "list" and inner.get("type") == "dict":
            found += [f"{above}{name}", *list_keys(inner["schema"], f"{above}{name}[].")]
        elif rule["type"] == "dict" and f"{above}{name}" not in ("resources.max",):
            found += list_keys(inner, f"{above}{name}.")
        else:
            found.append(f"{above}{name}")
    return found


def test_the_table_has_every_key_of_a_policy() -> None:
    assert set(list_keys(POLICY)) - set(ROWS) == set()


# The rows whose default is "none", and what is empty then.
NONE = {
    "mounts.roots": OwnerPolicy().mount_roots,
    "secrets.env": tuple(one for one in OwnerPolicy().secret_env if one != "KTRDR_*"),
    "secrets.files": OwnerPolicy().secret_files,
    "secrets.commands": OwnerPolicy().secret_commands,
    "egress.reserved": OwnerPolicy().reserved,
    "instances.ttl": OwnerPolicy().longest_life,
    "prepare.refs": OwnerPolicy().prepare_refs,
    "prepare.projects": OwnerPolicy().projects,
    "publish.command": OwnerPolicy().publish_command,
    "publish.signing_key": OwnerPolicy().signing_key,
    "verify.notify": OwnerPolicy().verify_notify,
    "telemetry.collector": OwnerPolicy().collector,
    "telemetry.headers_file": Collector("http", "c.example", 4318).headers_file,
    "escalations.hook": EscalationPolicy().hook,
    "escalations.approve": EscalationPolicy().approved,
}


def test_what_has_no_default_allows_nothing() -> None:
    assert {key for key, (_, default) in ROWS.items() if default == "none"} == {*NONE, "egress.ceiling[].reason"}
    assert not any(NONE.values())


def test_the_other_defaults_are_those_of_the_table() -> None:
    """The numbers are compared with those of the program beside the other pages."""
    policy = OwnerPolicy()
    assert (policy.uses, policy.ceiling, policy.observe, policy.reports_runs) == (None, None, False, False)
    assert ROWS["egress.observe"][1] == ROWS["telemetry.runs"][1] == "false"
    assert policy.image_sources == ("https://",) and ROWS["images.sources"][1] == "`https://`"
    made = parse_policy("{egress: {ceiling: [{host: a.example}]}, escalations: {approve: [{host: a.example}]}}")
    assert made.ceiling is not None and made.ceiling[0].ports == made.escalations.approved[0].ports == (443,)
    assert ROWS["egress.ceiling[].ports"][1] == ROWS["escalations.approve[].ports"][1] == "443"
    assert (made.escalations.approved[0].seconds, made.escalations.longest) == (3600, 8 * 3600)


@pytest.mark.parametrize(
    ("limited", "methods", "paths"),
    [("methods: [DELETE]", ("DELETE",), ("/",)), ("paths: [/v1/]", ("GET", "HEAD"), ("/v1/",))],
)
def test_half_a_bound_of_requests_has_the_default_of_a_profile_for_the_other_half(
    limited: str, methods: tuple[str, ...], paths: tuple[str, ...]
) -> None:
    [bound] = parse_policy(f"egress: {{ceiling: [{{host: a.example, {limited}}}]}}").ceiling or ()
    assert bound.requests is not None and (bound.requests.methods, bound.requests.paths) == (methods, paths)


@pytest.mark.parametrize("broken", ["etc/policy.yaml", "etc"])
@pytest.mark.parametrize("root", [True, False])
def test_a_policy_that_is_a_link_to_nothing_is_not_taken_for_none(
    place: Path, monkeypatch: pytest.MonkeyPatch, broken: str, root: bool
) -> None:
    """Its owner keeps it elsewhere, such as on a file system that is not mounted. The defaults may allow more."""
    be(monkeypatch, root=root)
    if broken == "etc":
        (place / "etc").rmdir()
    (place / broken).symlink_to(place / "not-mounted")
    with pytest.raises(HostError, match=f"{broken} is a link to nothing") as caught:
        load.read_policy()
    assert caught.value.where == str(place / "etc/policy.yaml") and "mount" in caught.value.hint
