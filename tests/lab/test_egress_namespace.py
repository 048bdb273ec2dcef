"""The network namespace of an instance and the processes that serve it: what is in it, who they are."""

from __future__ import annotations

import json
from pathlib import Path

from laboratory.lab import Lab
from laboratory.namespaces import inside, ip
from laboratory.netguest import NamespaceGuest

from ktrdr_vm.egress.client import GuardClient

ALLOWED = [{"host": "allowed.test.lab", "ports": [443]}]


def test_it_has_the_tap_and_a_loopback_that_is_down_and_nothing_to_forward_to(lab: Lab) -> None:
    with NamespaceGuest(lab.home, ALLOWED) as guest:
        name, tap = f"ktrdr-{guest.identity.instance_id}", guest.identity.tap
        assert name in [row["name"] for row in json.loads(ip("-j netns list"))]
        links = {row["ifname"]: row for row in json.loads(ip("-j -d link", name))}
        assert links.keys() == {"lo", tap}
        assert "UP" not in links["lo"]["flags"] and "UP" in links[tap]["flags"] and "master" not in links[tap]
        routes = json.loads(ip("-j route show table all", name))
        assert [row["dst"] for row in routes if "gateway" in row or row["dst"] == "default"] == []
        with inside(name):
            assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"
            assert Path("/proc/sys/net/ipv6/conf", tap, "disable_ipv6").read_text().strip() == "1"
        assert "masquerade" not in guest.nft("list ruleset") and "snat" not in guest.nft("list ruleset")


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_what_reads_the_guests_bytes_has_a_user_of_its_own_and_no_privileges(lab: Lab) -> None:
    with NamespaceGuest(lab.home, ALLOWED) as guest:
        status = GuardClient(guest.paths.guard).status()
        assert read_status(status["pid"])["Uid"].split() == ["0"] * 4
        for part, uid in (("resolver", guest.allocation.resolver_uid), ("proxy", guest.allocation.proxy_uid)):
            found = read_status(status[part])
            assert found["Uid"].split() == [str(uid)] * 4 and found["Groups"] in ("", str(uid)), part
            assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0, part
        for path in (guest.paths.ledger, guest.paths.guard / "ruleset.nft"):
            assert path.stat().st_uid == 0 and path.stat().st_mode & 0o077 == 0
