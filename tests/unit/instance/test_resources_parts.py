"""What of the resources can be shown without a host: their order, the seed, the rules of opening a folder, whom they
refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host import mounts
from ktrdr_vm.host.beneath import Place, UnsafePathError, open_folder, open_named_folder
from ktrdr_vm.host.mounts import find_mounts
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.resources import firewall as firewall_module
from ktrdr_vm.instance.resources import make_resources
from ktrdr_vm.instance.resources import namespace as namespace_module
from ktrdr_vm.instance.resources import tap as tap_module
from ktrdr_vm.instance.resources.base import Blueprint, Target
from ktrdr_vm.instance.resources.firewall import Firewall, count_rules_of_text
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.instance.resources.namespace import Namespace
from ktrdr_vm.instance.resources.secret import Secret
from ktrdr_vm.instance.resources.seed import Seed, make_seed, read_seed
from ktrdr_vm.instance.resources.tap import Tap
from ktrdr_vm.plan.facts import Facts, ImageFacts, allocate
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from tests.fakes.libvirt import FakeLibvirt

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "name": "n",
    "image": "i",
    "mounts": [{"source": "a", "target": "/a"}, {"source": "b", "target": "/b", "readonly": False}],
    "secrets": [
        {"name": "token", "source": {"env": "KTRDR_TOKEN"}, "path": "/run/secrets/token", "ttl": "60s", "mode": "0400"}
    ],
    "egress": {"allow": [{"host": "a.example", "ports": [443]}]},
}
IDENTITY = parse_instance_id("one")


@pytest.fixture
def target(tmp_path: Path) -> Target:
    home = Home(tmp_path)
    home.create()
    paths = home.instance("one")
    paths.directory.mkdir()
    return Target(IDENTITY, paths, FakeLibvirt())


@pytest.fixture
def blueprint(target: Target) -> Blueprint:
    facts = Facts(
        "tcg", "/e", "m", str(target.paths.home), ImageFacts("i", "d" * 64, "/i"), workspace=str(target.paths.home)
    )
    plan = Plan(build_profile(DOCUMENT), facts, IDENTITY, DOCUMENT)
    allocation = allocate(0, genid="g", host_key="KEY", host_public_key="p", login_public_key="l")

    def connect() -> Any:
        raise AssertionError("nobody is asked")

    return Blueprint(plan, allocation, connect, lambda _: b"")


def test_what_protects_comes_before_what_it_protects(target: Target, blueprint: Blueprint) -> None:
    kinds = [resource.kind for resource in make_resources(target, blueprint)]
    assert kinds == ["overlay", "seed", "namespace", "firewall", "guard", "tap", "domain", "mount", "mount", "secret"]
    keys = [resource.key for resource in make_resources(target, blueprint)]
    assert len(set(keys)) == len(keys)
    assert all(resource.by_hand() for resource in make_resources(target, blueprint))


def test_without_a_plan_whatever_may_be_there_is_looked_for(target: Target) -> None:
    (target.paths.mounts / "3").mkdir(parents=True)
    (target.paths.mounts / "stray").mkdir()
    resources = make_resources(target, None)
    assert [resource.kind for resource in resources] == [
        "overlay",
        "seed",
        "namespace",
        "firewall",
        "guard",
        "tap",
        "domain",
        "mount",
    ]
    assert resources[-1].key == "mount:3"


# -- seed --------------------------------------------------------------------------------------------------------------


def test_the_seed_is_what_cloud_init_looks_for() -> None:
    documents = {"user-data": b"#cloud-config\n", "meta-data": b"a: b\n" * 5000, "network-config": b"v"}
    raw = make_seed(documents)
    assert read_seed(raw) == documents
    assert raw[0x8001:0x8006] == b"CD001" and raw[0x8028:0x802E] == b"cidata"


def test_the_seed_is_its_owners_and_differences_are_named(target: Target, blueprint: Blueprint) -> None:
    seed = Seed(target, blueprint)
    assert not seed.exists()
    seed.create()
    seed.create()
    assert seed.exists() and seed.verify() == []
    assert target.paths.seed.stat().st_mode & 0o777 == 0o600
    target.paths.seed.write_bytes(
        make_seed({"user-data": b"other", "meta-data": blueprint.documents["meta-data"].encode()})
    )
    assert seed.verify() == ["user-data differs from the plan", "network-config differs from the plan"]
    seed.remove()
    seed.remove()
    assert list(target.paths.directory.iterdir()) == []


def test_a_link_in_the_seeds_way_is_not_followed(target: Target, blueprint: Blueprint, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    target.paths.seed.with_suffix(".partial").symlink_to(victim)
    Seed(target, blueprint).create()
    assert victim.read_text() == "mine" and not target.paths.seed.is_symlink()


# -- whom they refuse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "ours"),
    [("", False), ("somebody else's", False), ("MARK", True), ("ktrdr-vm instance_id=stream-a home=00000000", False)],
)
@pytest.mark.parametrize("place", ["", IDENTITY.namespace], ids=["on the host", "in the namespace"])
def test_a_table_of_another_maker_is_never_touched(
    target: Target, blueprint: Blueprint, monkeypatch: pytest.MonkeyPatch, comment: str, ours: bool, place: str
) -> None:
    loaded: list[tuple[str, str]] = []
    monkeypatch.setattr(firewall_module, "is_namespace", lambda _: True)
    monkeypatch.setattr(firewall_module, "read_table", lambda *_: [{"table": {"name": IDENTITY.table}}])
    monkeypatch.setattr(
        firewall_module,
        "read_comment",
        lambda _, where: comment.replace("MARK", target.mark) if where == place else None,
    )
    monkeypatch.setattr(firewall_module, "load_ruleset", lambda *words: loaded.append(words))
    if ours:
        Firewall(target, blueprint).remove()
        text = f"add table inet {IDENTITY.table}\ndelete table inet {IDENTITY.table}\n"
        assert sorted(loaded) == [(text, ""), (text, IDENTITY.namespace)]
    else:
        with pytest.raises(ProvisionError, match="not made for this instance"):
            Firewall(target, blueprint).remove()
        assert loaded == []


def test_an_interface_of_another_maker_is_never_touched(
    target: Target, blueprint: Blueprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = {"ifalias": "somebody else's", "flags": [], "addr_info": []}
    monkeypatch.setattr(tap_module, "read_link", lambda _, namespace="": None if namespace else link)
    for act in (Tap(target, blueprint).create, Tap(target, None).remove):
        with pytest.raises(ProvisionError, match="not made for this instance"):
            act()


def test_a_namespace_of_another_maker_is_never_touched(
    target: Target, blueprint: Blueprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace_module.netns, "is_namespace", lambda _: True)
    monkeypatch.setattr(namespace_module, "list_links", lambda _: {"lo": "somebody else's"})
    monkeypatch.setattr(namespace_module.process, "run", lambda *_, **__: pytest.fail("something was called"))
    for act in (Namespace(target, blueprint).create, Namespace(target, None).remove):
        with pytest.raises(ProvisionError, match="not made for this instance"):
            act()


def test_a_writable_mount_is_refused(target: Target, blueprint: Blueprint) -> None:
    with pytest.raises(HostError, match="writable"):
        Mount(target, blueprint, "1", blueprint.plan.profile.mounts[1]).create()
    assert not target.paths.mounts.exists()


def test_a_secret_for_removal_asks_nobody(target: Target) -> None:
    secret = Secret(target, None, None, "token")
    assert secret.exists() is False
    secret.remove()


def test_a_firewall_that_is_not_read_back_as_it_was_rendered_is_none(
    target: Target, blueprint: Blueprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tap is set up after it, so there is no traffic before."""
    rules = count_rules_of_text(blueprint.documents["ruleset.nft"])
    outside = count_rules_of_text(blueprint.documents["ruleset-host.nft"])
    missing = 0
    monkeypatch.setattr(firewall_module, "is_namespace", lambda _: True)
    monkeypatch.setattr(firewall_module, "read_comment", lambda *_: None)
    monkeypatch.setattr(firewall_module, "load_ruleset", lambda *_: None)
    monkeypatch.setattr(
        firewall_module, "read_table", lambda _, where: [{"rule": {}}] * ((rules if where else outside) - missing)
    )
    Firewall(target, blueprint).create()
    missing = 1
    with pytest.raises(ProvisionError, match="not the one that was rendered"):
        Firewall(target, blueprint).create()


def test_rules_are_counted_as_they_are_rendered() -> None:
    text = "table inet t {\n  set s {\n    type ipv4_addr\n  }\n  chain a {\n    type filter hook input priority 0;\n    # why\n    accept\n    drop\n  }\n  chain b {\n    jump a\n  }\n}\n"
    assert count_rules_of_text(text) == 3


# -- opening a folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "real" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to("../outside")
    (root / "real" / "up").symlink_to("..")
    (root / "file").write_text("x")
    return root


@pytest.mark.parametrize(
    "relative",
    [
        "link",
        "link/x",
        "real/up",
        "real/up/real",
        "file",
        "file/x",
        "missing",
        "..",
        "../outside",
        "real/../../outside",
    ],
)
def test_only_real_folders_beneath_the_root_open(tree: Path, relative: str) -> None:
    with pytest.raises(UnsafePathError), open_named_folder(Place(tree, Path(relative).parts), "mounts.source"):
        pass


def test_a_real_folder_opens_and_is_the_one(tree: Path) -> None:
    with open_folder(tree, ("real", "deep")) as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == tree / "real" / "deep"
    with open_folder(tree) as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == tree


def test_another_file_system_on_the_way_is_refused() -> None:
    with pytest.raises(HostError, match="another file system"), open_folder(Path("/"), ("proc",)):
        pass


def test_mounts_are_found_by_their_real_names(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        r"36 35 98:0 / /home/a\040b/mounts/0 ro,nosuid,nodev,relatime shared:1 - ext4 /dev/x rw",
        "37 35 98:0 / /home/ü/mounts/1 rw,relatime - ext4 /dev/x rw",
        "38 35 98:0 / /home/a rw - ext4 /dev/x rw",
    ]
    monkeypatch.setattr(Path, "read_text", lambda self, *_, **__: "\n".join(lines) + "\n")
    assert [found.target for found in find_mounts(Path("/home/a b/mounts"))] == ["/home/a b/mounts/0"]
    assert find_mounts(Path("/home/a b/mounts"))[0].options == {"ro", "nosuid", "nodev", "relatime"}
    assert [found.filesystem for found in find_mounts(Path("/home/ü"))] == ["ext4"]
    assert [found.target for found in mounts.find_mounts(Path("/home/a"))] == ["/home/a"]
