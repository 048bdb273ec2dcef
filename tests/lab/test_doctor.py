"""`doctor` in a host that other programs and earlier versions have touched. What it says to do is done, and helps. No
VM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from laboratory import world
from laboratory.command import run
from laboratory.lab import Lab
from laboratory.namespaces import ip
from laboratory.netguest import NamespaceGuest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.foreign_rules import require_passage
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.nft import list_ruleset
from ktrdr_vm.instance.allocation import find_users

FOREIGN = "table inet other {{ chain {hook} {{ type filter hook {hook} priority 0; policy drop; ct state established,related accept; }}; }}"


@pytest.fixture
def guest(lab: Lab, libvirt: Libvirt) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as made:
        yield made


def diagnose(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    said = run(lab, "doctor", "--json")
    assert said.code in (0, 3), said.stderr
    checks: dict[str, list[dict[str, Any]]] = {}
    for check in json.loads(said.stdout):
        checks.setdefault(check["name"], []).append(check)
    assert (said.code == 3) == any(check["state"] == "missing" for group in checks.values() for check in group)
    return checks


def test_another_programs_rules_are_found_and_its_advice_helps(lab: Lab, guest: NamespaceGuest) -> None:
    assert diagnose(lab)["firewall"][0]["state"] == "ok"
    assert guest.lookup("allowed.test.lab")["addresses"]
    subprocess.run(["nft", "-f", "-"], input=FOREIGN.format(hook="output").encode(), check=True, timeout=10)
    try:
        # Not a false alarm: the proxy reaches no server any more.
        assert not serves(guest)
        [check] = diagnose(lab)["firewall"]
        assert check["state"] == "missing" and "inet other output" in check["detail"]
        # And `apply` refuses in the same words, before it makes anything.
        with pytest.raises(HostError) as refused:
            require_passage(list_ruleset(), find_users())
        assert (refused.value.message, refused.value.hint) == (check["detail"], check["fix"])
        assert check["fix"].startswith("nft insert rule inet other output ")
        subprocess.run(["nft", "-f", "-"], input=check["fix"].removeprefix("nft ").encode(), check=True, timeout=10)
        assert serves(guest)
        assert diagnose(lab)["firewall"][0]["state"] == "ok"
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "other"], check=True, timeout=10)


@pytest.mark.parametrize("hook", ["input", "forward", "prerouting"])
def test_what_other_programs_close_on_the_way_in_concerns_nobody(lab: Lab, guest: NamespaceGuest, hook: str) -> None:
    """As the default of firewalld and ufw: answers to what the host itself sends pass."""
    subprocess.run(["nft", "-f", "-"], input=FOREIGN.format(hook=hook).encode(), check=True, timeout=10)
    try:
        subprocess.run(["nft", "add", "rule", "inet", "other", hook, "iifname", "lo", "accept"], check=True, timeout=10)
        assert serves(guest)
        assert diagnose(lab)["firewall"][0]["state"] == "ok"
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "other"], check=True, timeout=10)


def serves(guest: NamespaceGuest) -> bool:
    answer = guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab", limit=3)
    return "served by" in answer.get("said", "")


def test_what_looks_like_ours_and_belongs_to_nobody_is_shown_and_left(lab: Lab, libvirt: Libvirt) -> None:
    tap, table = "kv0123456789", "ktrdr_0123456789"
    newer = lab.home.instance(lab.new_id("newer"))
    newer.directory.mkdir(mode=0o711)
    newer.journal.write_text(json.dumps({"schema_version": 99, "instance_id": newer.directory.name}))
    ip(f"tuntap add dev {tap} mode tap")
    ip("netns add ktrdr-nobodys")
    subprocess.run(["nft", "add", "table", "inet", table], check=True, timeout=10)
    try:
        found = diagnose(lab)["residue"]
        said = {check["detail"]: check["fix"] for check in found}
        assert {check["state"] for check in found} == {"warning"}
        fixes = [f"ip link del {tap}", "ip netns del ktrdr-nobodys", f"nft delete table inet {table}"]
        for fix in fixes:
            assert fix in said.values(), said
        assert any("version 99" in detail for detail in said)
        # As it says, by hand.
        for fix in fixes:
            subprocess.run(fix.split(), check=True, timeout=10)
    finally:
        newer.journal.unlink()
        newer.directory.rmdir()
    assert [check["state"] for check in diagnose(lab)["residue"]] == ["ok"]
