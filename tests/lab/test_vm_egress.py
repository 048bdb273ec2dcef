"""The egress attacks once more, end to end: from a root shell in a real VM, and from a privileged container in it."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

import pytest
from laboratory import world
from laboratory.attacks import MAY_ARRIVE, NOTHING, Attack, judge, make_attacks, make_requests
from laboratory.instances import LabInstance
from laboratory.lab import Lab
from laboratory.recorder import Hit, Packet

from ktrdr_vm.errors import GuestError

CONTAINER = (
    "docker run --rm --interactive --network host --privileged --pull never "
    "--volume /root/probes.py:/probes.py:ro ktrdr-base:13 python3 /probes.py"
)
# In emulation each probe costs; from the container a part of each row is tried.
_IN_CONTAINER = [
    "row1-an-address-on-22",
    "row1-an-address-on-443",
    "row2-an-allowed-name-on-22",
    "row3-a-foreign-name-in-TLS",
    "row3-no-name-in-TLS",
    "row4-an-allowed-name-at-a-foreign-address",
    "row5-a-foreign-Host",
    "row6-QUIC",
    "row6-DNS-to-any-server",
    "row6-DNS-over-TLS",
    "row7-a-name",
    "row8-printer.test.lab-over-HTTP",
    "row9-an-alias's-own-name",
    f"row10-{world.METADATA}-on-80",
    f"row10-{world.PRINTER}-on-80",
    f"row10-{world.HOST_ADDRESS}-on-22",
    f"row13-icmp-to-{world.EVIL}",
    f"row13-gre-to-{world.EVIL}",
]


class Seen:
    """Answers by attack, and what arrived while they ran."""

    def __init__(
        self, lab: Lab, instance: LabInstance, attacks: list[Attack], command: str = "python3 /root/probes.py"
    ) -> None:
        self.instance, self.attacks = instance, {str(attack): attack for attack in attacks}
        mark = lab.recorder.mark()
        self.answers = dict(
            zip(self.attacks, instance.probe_all([attack.probe for attack in attacks], command), strict=True)
        )
        self.packets: list[Packet] = lab.recorder.packets(mark)
        self.hits: list[Hit] = lab.recorder.hits(mark)
        instance.ledger()
        end = time.monotonic() + 5
        while self._missing() and time.monotonic() < end:
            time.sleep(0.1)

    def _missing(self) -> bool:
        return any(attack.ledger and not self.instance.read_ledger(**attack.ledger) for attack in self.attacks.values())

    def wrong(self, name: str) -> str:
        attack = self.attacks[name]
        wrong = judge(attack, self.answers[name])
        if not wrong and attack.ledger and not self.instance.read_ledger(**attack.ledger):
            return f"no line of the ledger carries {attack.ledger}"
        return wrong


@pytest.fixture(scope="module")
def from_root(lab: Lab, instance: LabInstance) -> Seen:
    return Seen(lab, instance, make_attacks(instance.gateway))


@pytest.fixture(scope="module")
def from_container(lab: Lab, instance: LabInstance) -> Seen:
    attacks = [attack for attack in make_attacks(instance.gateway) if str(attack) in _IN_CONTAINER]
    assert len(attacks) == len(_IN_CONTAINER)
    return Seen(lab, instance, attacks, CONTAINER)


def test_the_guest_is_a_machine_of_its_own(instance: LabInstance) -> None:
    assert instance.shell("hostname")[1].strip() == instance.instance_id
    assert instance.shell("id -u")[1].strip() == "0"


def test_what_is_allowed_works(lab: Lab, instance: LabInstance) -> None:
    seen = Seen(lab, instance, make_requests(instance.gateway))
    assert {name: wrong for name in seen.attacks if (wrong := seen.wrong(name))} == {}
    assert {(packet.protocol, packet.address, packet.port) for packet in seen.packets} - MAY_ARRIVE == set()


@pytest.mark.parametrize("row", sorted({attack.row for attack in make_attacks("10.0.0.0")}))
def test_row_from_the_root_shell(from_root: Seen, row: int) -> None:
    names = [name for name, attack in from_root.attacks.items() if attack.row == row]
    assert {name: wrong for name in names if (wrong := from_root.wrong(name))} == {}


@pytest.mark.parametrize("name", _IN_CONTAINER)
def test_row_14_from_a_privileged_container_on_the_hosts_network(from_container: Seen, name: str) -> None:
    assert from_container.wrong(name) == ""


def test_nothing_arrived_but_what_is_allowed(from_root: Seen, from_container: Seen) -> None:
    for seen in (from_root, from_container):
        arrived = {(packet.protocol, packet.address, packet.port) for packet in seen.packets}
        assert arrived - MAY_ARRIVE == set()
        assert [packet for packet in seen.packets if packet.network == "lan"] == []
        assert [hit for hit in seen.hits if hit.server == "host"] == []


def test_only_allowed_names_were_asked_for_upstream(from_root: Seen) -> None:
    asked = {hit.name for hit in from_root.hits if hit.server == "dns"}
    assert asked & {"evil.test.lab", "target.test.lab", "other.test.lab", "wild.test.lab"} == set()
    assert not any(name.endswith(".allowed.test.lab") for name in asked)


def test_row_15_from_the_first_instant_of_boot_nothing_arrived_but_what_is_allowed(instance: LabInstance) -> None:
    """A machine that boots looks for time servers, routers and updates; of all that nothing leaves."""
    assert instance.arrived_while_booting - MAY_ARRIVE == set()
    assert instance.ledger(), "what it tried is in the ledger"


def test_curl_cannot_be_pointed_elsewhere(lab: Lab, instance: LabInstance) -> None:
    """Row 4 as a person would try it; the certificate is verified, so the right server answered."""
    instance.shell("cat > /root/lab.pem <<'EOF'\n" + lab.world.authority.pem + "EOF\n")
    mark = lab.recorder.mark()
    code, said = instance.shell(
        f"curl -sS --max-time 60 --cacert /root/lab.pem --resolve allowed.test.lab:443:{world.EVIL} https://allowed.test.lab/"
    )
    assert (code, said) == (0, f"served by {world.WEB}:443 as allowed.test.lab\n")
    assert world.EVIL not in {packet.address for packet in lab.recorder.packets(mark)}
    code, said = instance.shell("curl -sS --max-time 60 --cacert /root/lab.pem https://evil.test.lab/")
    assert code == 6, said  # could not resolve
    code, said = instance.shell("curl -sS --max-time 60 http://allowed.test.lab/ -H 'Host: evil.test.lab'")
    assert "evil.test.lab:80 is not in the egress allowlist" in said


def test_a_changed_mac_or_address_cuts_the_guest_off(lab: Lab, instance: LabInstance) -> None:
    """Row 11 from the guest's own shell. It mends itself, or the connection that asks would be gone."""
    nic = "$(ip -o -4 route show default | awk '{print $5}')"
    mark = lab.recorder.mark()
    code, said = instance.shell(
        f"nic={nic}; good=$(cat /sys/class/net/$nic/address); "
        f"ip addr add 10.213.77.3/24 dev $nic; curl -sS --max-time 6 --interface 10.213.77.3 http://allowed.test.lab/; echo address $?; "
        f"ip addr del 10.213.77.3/24 dev $nic; "
        f"ip link set $nic address 52:54:00:00:00:99; curl -sS --max-time 6 http://{world.WEB}/ -H 'Host: allowed.test.lab'; echo mac $?; "
        f"ip link set $nic address $good",
        timeout=120,
    )
    assert code == 0
    assert "address 0" not in said and "mac 0" not in said, said
    assert "served by" not in said
    assert [hit for hit in lab.recorder.hits(mark) if hit.server == "http"] == []
    assert instance.ledger(kind="drop", rule="spoofed")
    assert instance.shell("true")[0] == 0


def test_ipv6_reaches_nothing(lab: Lab, instance: LabInstance) -> None:
    """Row 12. The guest has the stack, its root gives the NIC an address and a route, and nothing leaves.

    The tap does not speak IPv6, so that its packets come to no rule; test_egress_identity shows the rule alone.
    """
    mark = lab.recorder.mark()
    fetch = f"curl -sS --max-time 5 -g 'http://[{world.INTERNET_V6}]/'"
    assert instance.shell(fetch)[0] != 0
    switch_on = (
        "nic=$(ip -o -4 route show default | awk '{print $5}'); echo 0 > /proc/sys/net/ipv6/conf/$nic/disable_ipv6; "
        "ip -6 addr add fd00:1::2/64 dev $nic nodad; ip -6 route add default via fd00:1::1; "
        "ip -6 neigh add fd00:1::1 lladdr 52:54:00:00:00:01 dev $nic; "
    )
    # 28: it was sent, and nobody answered. Without a route it would be 7.
    assert instance.shell(f"{switch_on}{fetch}", timeout=60)[0] == 28
    # Questions about names may go on meanwhile: the machine and its services have some of their own.
    assert [packet for packet in lab.recorder.packets(mark) if ":" in packet.address] == []


def test_a_service_may_listen_on_ipv6(lab: Lab, instance: LabInstance) -> None:
    """`listen [::]` and ::1, as many images do by default."""
    listen = "import socket; s = socket.create_server(('{}', 0), family=socket.AF_INET6); c = socket.create_connection(s.getsockname()[:2])"
    for address in ("::", "::1"):
        assert instance.shell(f'python3 -c "{listen.format(address)}"') == (0, "")


def test_an_upload_ends_with_its_guard_and_the_instance_recovers(lab: Lab, instance: LabInstance) -> None:
    """Row 19 end to end: a killed guard closes the VM, `status` says so, and making it again opens it."""
    import os
    import signal

    from laboratory.recorder import wait_until

    from ktrdr_vm.egress.client import GuardClient

    request = {
        "kind": "http",
        "address": world.WEB,
        "port": 80,
        "send": "GET / HTTP/1.0\r\nHost: allowed.test.lab\r\n\r\n",
    }
    assert instance.probe_all([request])[0]["outcome"] == "answered"
    os.kill(GuardClient(instance.instance.paths.guard).status()["pid"], signal.SIGKILL)

    def guard_state() -> tuple[str, ...]:
        return next(row.differences for row in instance.instance.load().status() if row.kind == "guard")

    wait_until(
        lambda: guard_state() == ("the guard does not run; nothing leaves the instance",),
        "status says that the guard is gone",
    )
    mark = lab.recorder.mark()
    # The first status after the guard's end sets the link down, and then nobody comes in either.
    with suppress(GuestError):
        assert instance.probe_all([request])[0]["outcome"] in NOTHING
    assert lab.recorder.packets(mark) == []
    instance.instance.create(instance.gathered.plan, read_secret=lambda _: b"", mount_roots=())
    assert guard_state() == ()
    assert instance.probe_all([request])[0]["outcome"] == "answered"


def test_a_flushed_ruleset_on_the_host_is_no_matter_of_the_machine(instance: LabInstance) -> None:
    """Row 18 with a machine: it goes on, its flows do, and the ledger has no line of it."""
    import subprocess

    from laboratory.recorder import wait_until

    instance.shell("(for n in $(seq 40); do date +%s%N; sleep 0.1; done) > /root/ticks 2>&1 &")
    subprocess.run(["nft", "flush", "ruleset"], check=True)

    def is_back() -> bool:
        return next(row.differences for row in instance.instance.load().status() if row.kind == "firewall") == ()

    wait_until(is_back, "the guard has put the host's table back", 30)
    assert instance.read_ledger(rule="table") == []
    code, said = instance.shell("sleep 5; cat /root/ticks")
    ticks = [int(line) for line in said.split()]
    # A machine that is paused has a gap of its whole pause.
    assert code == 0 and max(later - sooner for sooner, later in itertools.pairwise(ticks)) < 2_000_000_000, ticks
    request = {
        "kind": "http",
        "address": world.WEB,
        "port": 80,
        "send": "GET / HTTP/1.0\r\nHost: allowed.test.lab\r\n\r\n",
    }
    assert instance.probe_all([request])[0]["outcome"] == "answered"
