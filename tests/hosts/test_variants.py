"""Hosts as they are configured. Each ends in a fork whose isolation gate passes, or in one sentence before anything is made."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from box.household import Household
from box.machine import Box
from box.root import CLONE


@dataclass(frozen=True)
class Variant:
    """`setup` makes it of a box, as its owner would. `told` is what doctor and apply say beforehand; `mend` is what that tells one to do."""

    setup: str
    before: str = ""
    told: str = ""
    mend: str = ""


VARIANTS = {
    "umask 077": Variant("echo 'umask 077' > /etc/profile.d/umask.sh", before="umask 077"),
    "ip_forward": Variant("echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-forward.conf && sysctl -q -w net.ipv4.ip_forward=1"),
    "docker": Variant("systemctl start containerd docker"),
    "systemd-resolved": Variant(
        "mkdir -p /etc/systemd/resolved.conf.d && printf '[Resolve]\\nDNS=198.51.100.53\\n' > /etc/systemd/resolved.conf.d/dns.conf && "
        "systemctl enable -q --now systemd-resolved && ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
    ),
    "read-only /usr": Variant("mount --bind /usr /usr && mount -o remount,ro,bind /usr"),
    "ufw": Variant(
        "ufw allow 22/tcp >/dev/null && ufw --force enable >/dev/null", told="closes INPUT", mend="iptables -I INPUT -i kt+ -j ACCEPT"
    ),
    "firewalld": Variant("systemctl enable -q --now firewalld", told="closes"),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_host_that_is_configured_so(name: str, box: Box) -> None:
    variant, home = VARIANTS[name], Household(box)
    home.prepare()
    box.run(variant.setup, limit=300, step=f"set up: {name}").require()
    prefix = f"{variant.before}; " if variant.before else ""
    if variant.before:
        # What the program makes itself, too.
        box.run(f"{prefix}rm -rf {CLONE}/.venv/stamp.old; cd {CLONE} && make setup", limit=600, step="make setup").require()
    said = box.run(f"{prefix}cd /root/work && {CLONE}/.venv/bin/ktrdr-vm apply quick.yaml --instance-id one", limit=2400, step="apply")
    if said.code and variant.told:
        pytest.fail(said.out + said.err)
    said.require()
    assert "residue: none" in said.out + said.err
