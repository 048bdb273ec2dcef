"""Hosts as they are configured. Each ends in a fork whose isolation gate passes, or first in one sentence before
anything is made."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from box.household import WORK, Household
from box.machine import Box, Said
from box.root import CLONE


@dataclass(frozen=True)
class Variant:
    """`setup` makes it of a box, as its owner would; `before` stands before every command of the person.

    With `closed` the way of instances is closed: doctor and apply say so in the same words, and what they say to do
    opens it. With `template` one of another shape is made as well.
    """

    setup: str
    before: str = ""
    closed: bool = False
    template: bool = False


_RESOLVED = """
mkdir -p /etc/systemd/resolved.conf.d
printf '[Resolve]\\nDNS=198.51.100.53\\n' > /etc/systemd/resolved.conf.d/dns.conf
systemctl enable -q --now systemd-resolved
ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
"""
_OUTPUT_CLOSED = (
    "nft 'table inet own { chain out { type filter hook output priority 0; policy drop; ct state established,related accept;"
    " oifname lo accept; meta skuid 0 accept; }; }'"
)
VARIANTS = {
    "umask 077": Variant("umask 077; cd /root/ktrdr-vm && make setup", before="umask 077", template=True),
    "Docker's engine": Variant("systemctl start containerd docker && nft list ruleset | grep -q DOCKER"),
    "ufw": Variant("ufw allow 22/tcp >/dev/null && ufw --force enable >/dev/null"),
    "firewalld": Variant("systemctl unmask -q firewalld; systemctl enable -q --now firewalld"),
    "output closed": Variant(_OUTPUT_CLOSED, closed=True),
    "systemd-resolved": Variant(_RESOLVED),
    "ip_forward": Variant(
        "echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-forward.conf && sysctl -q -w net.ipv4.ip_forward=1"
    ),
    "read-only usr": Variant("mount --bind /usr /usr && mount -o remount,ro,bind /usr"),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_host_that_is_configured_so(name: str, box: Box) -> None:
    variant, home = VARIANTS[name], Household(box)
    home.prepare()
    box.run(variant.setup, limit=600, step=f"set up: {name}").require()
    if variant.template:
        box.run(f"sed -i 's/memory: 2GiB/memory: 1GiB/' {WORK}/quick.yaml").require()
    if variant.closed:
        _is_told_and_mended(home, _apply(box, variant))
    said = _apply(box, variant).require()
    assert "residue: none" in said.out + said.err
    assert "boots without a template" not in said.out + said.err
    left = (
        box.run("virsh -q list --all --name; ls /var/lib/ktrdr-vm/instances; ls /etc/apparmor.d/libvirt")
        .require()
        .out.split()
    )
    assert set(left) <= {"TEMPLATE.lxc", "TEMPLATE.qemu"}


def _apply(box: Box, variant: Variant) -> Said:
    before = f"{variant.before}; " if variant.before else ""
    return box.run(
        f"{before}cd {WORK} && {CLONE}/.venv/bin/ktrdr-vm apply quick.yaml --instance-id one", limit=2400, step="apply"
    )


def _is_told_and_mended(home: Household, refused: Said) -> None:
    """In one sentence, before anything is made; and the fix is one."""
    assert refused.code == 3, refused.out + refused.err
    told = home.ktrdr("doctor --json", limit=300)
    [check] = [one for one in json.loads(told.out) if one["name"] == "firewall"]
    assert told.code == 3 and check["state"] == "missing"
    assert check["detail"] in refused.err and check["fix"] in refused.err
    made = "ls /var/lib/ktrdr-vm/instances; nft list tables | grep ktrdr_; ip netns list | grep ^ktrdr-; ip -br link | grep ^kv; true"
    assert home.box.run(made).require().out.split() == []
    home.box.run(check["fix"], limit=120, step="what doctor says").require()
