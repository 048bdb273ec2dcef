"""Another local user of the host, without privilege: is not the guest, is not its gateway, and asks nobody in its
name."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside, ip
from laboratory.netguest import INTERFACE, NamespaceGuest, replace
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.links import read_link
from ktrdr_vm.host.listeners import find_bound
from ktrdr_vm.instance.allocation import find_users
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.instance.resources.tap import move_in
from ktrdr_vm.plan import guard_interface as wiring

_SOMEBODY = 65534
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000
_IP_FREEBIND = 15
# Every port that the guard may listen on, from the module that all of it is rendered from.
PORTS = sorted(
    {value for name, value in vars(wiring).items() if name.endswith("_PORT") and isinstance(value, int)}
    | set(wiring.BROKER_PORTS)
)
ALLOWED = [{"host": "allowed.test.lab", "ports": [80, 443]}]
BROKERED = {
    "version": 1,
    "name": "net",
    "image": "none",
    "secrets": [
        {
            "name": "api_key",
            "source": {"env": "KTRDR_API_KEY"},
            "broker": {
                "host": "api.test.lab",
                "header": "x-key: {{ secret }}",
                "base_url_env": "API",
                "methods": ["GET"],
                "paths": ["/"],
            },
        }
    ],
}


def as_somebody(act: Callable[[], None]) -> int:
    """errno of what another user met, 0 when it worked. In a process of its own: a uid is not taken back."""

    def run(said: object) -> None:
        os.setgroups([])
        os.setresgid(_SOMEBODY, _SOMEBODY, _SOMEBODY)
        os.setresuid(_SOMEBODY, _SOMEBODY, _SOMEBODY)
        try:
            act()
            said.put(0)  # type: ignore[attr-defined]
        except OSError as error:
            said.put(error.errno or -1)  # type: ignore[attr-defined]

    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    child = context.Process(target=run, args=(said,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    return int(said.get())


def attach(name: str) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))


@pytest.fixture
def tapped(lab: Lab, libvirt: Libvirt) -> Iterator[NamespaceGuest]:
    """An instance with a real tap, as it is while QEMU has not opened it, and nothing that serves."""
    mode = Path("/dev/net/tun").stat().st_mode
    # As udev has it on the hosts that people have.
    os.chmod("/dev/net/tun", 0o666)
    made = NamespaceGuest(lab.home, ALLOWED)
    made.paths.directory.mkdir(mode=0o711)
    try:
        made.host_namespace.create()
        made.tap.create()
        yield made
    finally:
        made.__exit__()
        os.chmod("/dev/net/tun", mode & 0o777)


@pytest.mark.host_root
def test_nobody_else_attaches_to_the_tap(tapped: NamespaceGuest) -> None:
    """Before it is moved, and afterwards, where another user finds no tap of that name and may make none."""
    assert tapped.tap.verify() == []
    assert as_somebody(lambda: attach(tapped.identity.tap)) in (errno.EPERM, errno.EACCES)
    move_in(tapped.target, tapped.allocation)
    assert (
        read_link(tapped.identity.tap) is None and read_link(tapped.identity.tap, tapped.identity.namespace) is not None
    )
    assert as_somebody(lambda: attach(tapped.identity.tap)) in (errno.EPERM, errno.EACCES)


@pytest.mark.host_root
def test_a_tap_without_an_owner_is_open_to_everybody_and_verify_names_it(tapped: NamespaceGuest) -> None:
    """The control of the test above."""
    name = tapped.identity.tap
    ip(f"link del {name}")
    process.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], timeout=10)
    process.run(["ip", "link", "set", "dev", name, "alias", tapped.target.mark], timeout=10)
    assert as_somebody(lambda: attach(name)) == 0
    assert "any local user may attach to it" in tapped.tap.verify()
    # In the namespace it makes no difference.
    move_in(tapped.target, tapped.allocation)
    assert as_somebody(lambda: attach(name)) in (errno.EPERM, errno.EACCES)


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def listen(address: str, port: int) -> Callable[[], None]:
    def act() -> None:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind((address, port))
        made.listen()

    return act


def enter(namespace: str) -> Callable[[], None]:
    def act() -> None:
        with inside(namespace):
            pass

    return act


def test_no_other_user_enters_the_namespace(guest: NamespaceGuest) -> None:
    """By its name, or by a process that is in it: there is none."""
    assert as_somebody(enter(guest.identity.namespace)) in (errno.EPERM, errno.EACCES)
    there = os.stat(Path("/run/netns", guest.identity.namespace)).st_ino
    inodes = set()
    for process_folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            inodes.add(os.stat(process_folder / "ns/net").st_ino)
    assert there not in inodes


def test_listeners_of_other_users_on_the_host_get_nothing_of_the_guest(guest: NamespaceGuest) -> None:
    """On every port of the guard and on the gateway's own address, while the guard serves and after it was killed."""
    assert as_somebody(listen(guest.gateway, 8999)) == 0
    caught: list[socket.socket] = []
    for port in PORTS:
        # Of root, which may listen on those ports, and so more than another user can do.
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind((guest.gateway, port))
        made.listen()
        made.setblocking(False)
        caught.append(made)
    try:
        assert "served by" in guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab").get("said", "")
        os.kill(GuardClient(guest.paths.guard).status()["pid"], signal.SIGKILL)
        wait_until(lambda: find_guards(guest.paths.guard) == [], "its children end with it")
        guest.probe_all([{"kind": "tcp", "address": guest.gateway, "port": port, "limit": 1} for port in PORTS])
        guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab", limit=1)
        for made in caught:
            with pytest.raises(BlockingIOError):
                made.accept()
    finally:
        for made in caught:
            made.close()


def test_whoever_finds_that_no_guard_serves_sets_the_link_down(lab: Lab, guest: NamespaceGuest) -> None:
    """Then not even a listener of root's in the namespace is reached in the guard's place."""
    os.kill(GuardClient(guest.paths.guard).status()["pid"], signal.SIGKILL)
    instance = Instance(lab.home, guest.identity, guest.tap.target.libvirt)
    wait_until(instance.close_unguarded, "the guard's lock is free and the link goes down")
    link = read_link(guest.identity.tap, guest.identity.namespace)
    assert link is not None and "UP" not in link["flags"]
    with inside(guest.identity.namespace):
        listener = socket.create_server(("0.0.0.0", wiring.TLS_PORT))
    with listener:
        answer = guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab", limit=1)
    assert answer["outcome"] != "connected" and "said" not in answer


def test_only_the_proxy_and_root_ask_the_resolver_over_the_loopback_device(guest: NamespaceGuest) -> None:
    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(2)
            made.connect((guest.allocation.loopback, wiring.DNS_PORT))
            made.send(bytes.fromhex("000101000001000000000000") + b"\x07allowed\x04test\x03lab\x00\x00\x01\x00\x01")
            made.recv(2000)

    ask()
    assert as_somebody(ask) != 0


def test_two_state_directories_never_share_a_slot(lab: Lab, guest: NamespaceGuest) -> None:
    """They know nothing of each other's journals. With one slot they would have one resolver and one user of the
    proxy."""
    slot = int(guest.allocation.proxy_uid) - find_users().first
    assert guest.allocation.loopback in find_bound(wiring.DNS_PORT) and slot % 2 == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((guest.allocation.loopback, wiring.DNS_PORT))
    twin = NamespaceGuest(lab.home, ALLOWED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        first.bind((twin.allocation.loopback, wiring.DNS_PORT))
        with pytest.raises(ProvisionError, match="in use"), twin:
            pass


def test_a_machine_that_has_gone_takes_credentials_and_link_with_it(lab: Lab) -> None:
    with NamespaceGuest(lab.home, profile=BROKERED) as guest:
        GuardClient(guest.paths.guard).give_credential("api_key", "value-of-the-lab")
        assert GuardClient(guest.paths.guard).list_credentials().held == ("api_key",)
        # The guard has to have seen it attached.
        GuardClient(guest.paths.guard).flush()
        ip(f"link set {INTERFACE} down", guest.namespace)
        wait_until(lambda: GuardClient(guest.paths.guard).list_credentials().held == (), "the value is taken back")
        wait_until(lambda: guest.tap.verify() == ["the link is down"], "the link goes down")
        assert [row["rule"] for row in guest.read_ledger(kind="guard", rule="link")] == ["link"]


def _flood(guest: NamespaceGuest, count: int) -> None:
    """Questions from as many source ports, each to the gateway."""
    with inside(guest.namespace):
        for port in range(20_000, 20_000 + count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.bind(("0.0.0.0", port))
                made.sendto(b"x", (guest.gateway, wiring.DNS_PORT))


def test_a_flood_of_questions_leaves_the_tables_of_connections_alone(lab: Lab, guest: NamespaceGuest) -> None:
    before, outside = guest.count_flows(), _count_flows()
    _flood(guest, 8000)
    assert guest.count_flows() < before + 200 and _count_flows() < outside + 200
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        assert "served by" in sibling.probe("tls", address=world.WEB, port=443, name="allowed.test.lab").get("said", "")


def test_without_the_rule_each_question_is_an_entry(lab: Lab) -> None:
    """The control of the test above; the count of what is new bounds it then."""
    with NamespaceGuest(lab.home, ALLOWED, sabotage=(replace("ruleset.nft", "notrack", "accept"),)) as guest:
        before, outside = guest.count_flows(), _count_flows()
        _flood(guest, 1000)
        time.sleep(0.2)
        assert guest.count_flows() > before + 800 and _count_flows() < outside + 200


def _count_flows() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def dial(address: str, port: int) -> Callable[[], None]:
    def act() -> None:
        with socket.socket() as made:
            made.settimeout(1)
            made.connect((address, port))

    return act


def as_user(uid: int, act: Callable[[], None]) -> int:
    global _SOMEBODY
    before, _SOMEBODY = _SOMEBODY, uid
    try:
        return as_somebody(act)
    finally:
        _SOMEBODY = before


PLACES = [(world.PRINTER, 9100), (world.METADATA, 80), (world.EVIL, 22), (world.EVIL, 53), (world.WEB, 443)]


def test_a_resolver_that_was_taken_over_reaches_the_hosts_name_servers_and_nothing_else(
    lab: Lab, guest: NamespaceGuest
) -> None:
    uid = int(guest.allocation.resolver_uid)
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        places = [*PLACES, (sibling.allocation.loopback, 53), (world.HOST_ADDRESS, world.HOST_SERVICE_PORT)]
        assert {place: as_user(uid, dial(*place)) for place in places} == dict.fromkeys(
            places, as_user(uid, dial(*places[0]))
        )
        assert as_user(uid, dial(*places[0])) != 0
        assert as_user(uid, dial(world.DNS, 53)) == 0
        assert guest.lookup("allowed.test.lab")["answers"] == 1
    strayed = list(guest.ledger(kind="drop", rule="resolver_strayed"))
    assert sum(row["count"] for row in strayed) >= len(places)


def test_a_proxy_that_was_taken_over_reaches_no_reserved_address(lab: Lab, guest: NamespaceGuest) -> None:
    """Whatever is public it does reach: its own lists are what bounds it, and are then the attacker's."""
    uid = int(guest.allocation.proxy_uid)
    with NamespaceGuest(lab.home, ALLOWED) as sibling:
        closed = [*PLACES[:2], (sibling.allocation.loopback, 53), (world.HOST_ADDRESS, world.HOST_SERVICE_PORT)]
        assert 0 not in {as_user(uid, dial(*place)) for place in closed}
        assert [as_user(uid, dial(*place)) for place in ((world.EVIL, 22), (world.WEB, 443))] == [0, 0]
    assert sum(row["count"] for row in guest.ledger(kind="drop", rule="proxy_reserved")) >= len(closed)


def test_without_the_chain_it_reaches_them(lab: Lab) -> None:
    """The control of the test above."""
    with NamespaceGuest(
        lab.home, ALLOWED, sabotage=(replace("ruleset-host.nft", "counter name resolver_strayed drop", "accept"),)
    ) as guest:
        assert as_user(int(guest.allocation.resolver_uid), dial(world.EVIL, 22)) == 0


def test_the_inbox_has_a_user_of_its_own_and_no_network(lab: Lab) -> None:
    profile = {"version": 1, "name": "net", "image": "none", "mode": "interactive"}
    with NamespaceGuest(lab.home, profile=profile) as guest:
        uid = int(guest.allocation.inbox_uid)
        assert uid not in (int(guest.allocation.resolver_uid), int(guest.allocation.proxy_uid))
        found = [path for path in Path("/proc").glob("[0-9]*") if path.stat().st_uid == uid]
        assert len(found) == 1
        assert os.readlink(found[0] / "ns/net") != os.readlink("/proc/self/ns/net")
        answer = guest.probe(
            "http", address=guest.gateway, port=wiring.INBOX_PORT, send="GET /v1/escalations HTTP/1.0\r\n\r\n"
        )
        assert answer["status"] == 200
