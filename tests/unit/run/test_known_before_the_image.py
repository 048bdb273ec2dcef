"""What makes a run impossible is said before an image is built or a machine is booted for it: that takes minutes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.foreign_rules import describe_obstacles, find_obstacles
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import Gathered, gather_profile
from ktrdr_vm.instance.allocation import find_users
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import build_profile, load_profile
from ktrdr_vm.report.model import RunReport
from ktrdr_vm.run import provision
from ktrdr_vm.run.listener import Listener, Options
from ktrdr_vm.run.run import Run
from tests.fakes.libvirt import FakeLibvirt

DOCUMENT: dict[str, Any] = {"version": 1, "name": "n", "image": "i"}


def execute(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: dict[str, Any],
    options: Options,
    image: object = None,
    ruleset: tuple[dict[str, Any], ...] = (),
) -> RunReport:
    """A run that ends at the latest when it has its image. `ruleset` is what nft lists of other programs."""
    monkeypatch.setattr(provision, "list_ruleset", lambda: list(ruleset))
    monkeypatch.setattr(Instance, "destroy", lambda *_, **__: None)
    monkeypatch.setattr(provision, "require_capacity", lambda *_: pytest.fail("went on with what cannot be"))
    monkeypatch.setattr(
        provision, "ensure_image", lambda *_, **__: image or pytest.fail("an image was made for what cannot be")
    )
    facts = Facts(
        "tcg", "/e", "m", str(tmp_path), ImageFacts("i", "d" * 64, "/i"),
        owner_uid=os.getuid(), owner_gid=os.getgid(), workspace=str(tmp_path),
    )  # fmt: skip
    plan = Plan(build_profile(document), facts, parse_instance_id("one"), document)
    loaded: Any = SimpleNamespace(source="p.yaml")
    gathered = Gathered(loaded, OwnerPolicy(), plan, Accelerator("tcg", "test"), None, None, ())
    return Run(gathered, Home(tmp_path), FakeLibvirt(), options, Listener()).execute()


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    mounts = [{"source": "there", "target": "/a"}, {"source": "nowhere", "target": "/b"}]
    report = execute(tmp_path, monkeypatch, DOCUMENT | {"mounts": mounts}, Options())
    assert report.exit_code == 3 and "nowhere is not a folder that can be shared" in report.message


def test_a_firewall_that_closes_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of `doctor`, and before an image is built for it. It was found by the guest, as a network that is
    down."""
    ruleset = (
        {
            "chain": {
                "family": "inet",
                "table": "other",
                "name": "out",
                "type": "filter",
                "hook": "output",
                "prio": 0,
                "policy": "drop",
            }
        },
    )
    report = execute(tmp_path, monkeypatch, DOCUMENT, Options(), ruleset=ruleset)
    assert report.exit_code == 3 and describe_obstacles(find_obstacles(list(ruleset), find_users())) in report.message


def test_a_snapshot_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = execute(tmp_path, monkeypatch, DOCUMENT, Options(source="other@never"))
    assert report.exit_code == 2 and "there is no snapshot" in report.message


def test_a_stock_image_that_is_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its overlay would cut off the end of its file system, and the guest would not come up."""
    image = SimpleNamespace(name="i", digest="d", content_digest="c", manifest={}, virtual_size=3 << 30)
    report = execute(tmp_path, monkeypatch, DOCUMENT | {"resources": {"disk": "2GiB"}}, Options(), image)
    assert report.exit_code == 2 and "the image requires 3072 MiB" in report.message


def test_a_recipe_that_is_larger_than_the_disk(tmp_path: Path) -> None:
    text = "version: 1\nname: p\nimage: debian-13-docker\nresources:\n  memory: 2GiB\n  disk: 2GiB\n"
    with pytest.raises(DocumentError, match=r"p\.yaml:6:9: resources\.disk: the image requires 4096 MiB"):
        gather_profile(
            load_profile(text, "p.yaml", lambda *_: ("", b"")),
            home=Home(tmp_path),
            workspace=tmp_path,
            instance_id="one",
        )
