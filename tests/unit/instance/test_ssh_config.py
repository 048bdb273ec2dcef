"""What OpenSSH is told: an instance is found by its name, with the key and the host key that were made for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.allocation import create_keys
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.ssh_config import make_ssh_options, make_wildcard_options
from ktrdr_vm.instance.teardown import tear_down
from ktrdr_vm.plan.facts import STOCK_USER


@pytest.fixture
def target(tmp_path: Path) -> Target:
    home = Home(tmp_path)
    home.create()
    home.instance("one").directory.mkdir()
    return Target(parse_instance_id("one"), home.instance("one"), None)  # type: ignore[arg-type]


def test_the_wildcard_block_leads_to_the_keys_of_an_instance(target: Target, tmp_path: Path) -> None:
    create_keys(target.paths)
    options = make_wildcard_options(tmp_path)
    assert options["ProxyCommand"].endswith("proxy --pass-descriptor '%n'") and options["ForwardAgent"] == "no"
    for option, name in (("IdentityFile", "login_key"), ("UserKnownHostsFile", "known_hosts")):
        assert Path(options[option].replace("%n", "one.ktrdr")).samefile(target.paths.directory / "ssh" / name)
    names, *key = target.paths.known_hosts.read_text().split()
    assert names == "one,one.ktrdr" and key == target.paths.host_key.with_suffix(".pub").read_text().split()


def test_no_agent_and_no_x11_are_forwarded_and_the_host_key_is_pinned(
    tmp_path: Path, write_instance: Callable[..., Journal]
) -> None:
    home = Home(tmp_path)
    home.create()
    write_instance(home, "one")
    loaded = Instance(home, parse_instance_id("one"), None).load()  # type: ignore[arg-type]
    loaded.plan = replace(
        loaded.plan, facts=replace(loaded.plan.facts, image=replace(loaded.plan.facts.image, user="u"))
    )
    one, every = make_ssh_options(loaded), make_wildcard_options(tmp_path)
    for options in (one, every):
        assert {options[name] for name in ("ForwardAgent", "ForwardX11")} == {"no"}
        assert (options["IdentityAgent"], options["IdentitiesOnly"]) == ("none", "yes")
        assert (options["StrictHostKeyChecking"], options["GlobalKnownHostsFile"]) == ("yes", "/dev/null")
    # One block for all has one user.
    assert (one["User"], every["User"]) == ("u", STOCK_USER) == ("u", "ktrdr")


def test_the_link_goes_with_the_instance(target: Target) -> None:
    create_keys(target.paths)
    create_keys(target.paths)
    tear_down(target, (), None, lambda *_: None)
    assert not target.paths.directory.exists() and list(target.paths.ssh_alias.parent.iterdir()) == []
