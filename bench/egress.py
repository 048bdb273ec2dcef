"""Rows about the guard: a guest that is a network namespace, with the real firewall, guard and tap, and the same
without any of them.

A namespace and no VM, because emulation would hide what the filter costs behind what the guest's own network stack
costs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from laboratory.namespaces import ip, make_namespace, remove_namespace
from laboratory.netguest import NamespaceGuest
from laboratory.world import DNS
from paramiko import SSHClient

from bench.machines import ADDRESS, GATEWAY, applied, read_pss
from bench.place import Place
from bench.prober import attempt
from bench.traffic import NAME, STREAM_PORT
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.instance.resources.guard import find_guards

SERVER, PORT = "192.0.2.80", 443
# The same server at an address that no rule knows.
PLAIN_SERVER = "192.0.2.81"
SIZE, REQUESTS = 500_000_000, 200
# How often a virtual machine takes each of its ways; the medians count.
TURNS = 5
_TAP, _MAC = "plaintap", "52:54:00:00:00:81"


def filtered(place: Place) -> dict[str, float]:
    allow = [{"host": NAME, "ports": [PORT, STREAM_PORT]}]
    with serving(place):
        guest = NamespaceGuest(place.lab.home, allow)
        place.lab.instance_ids.add(guest.identity.instance_id)
        taken = _time_set_up(guest)
        with guest:
            measured = _measure(guest.namespace, guest.gateway)
            memory = sum(read_pss(pid) for pid in find_guards(guest.paths.guard))
    return {f"guard.{name}": value for name, value in (measured | taken | {"memory": memory}).items()}


def unfiltered(place: Place) -> dict[str, float]:
    """The same namespace on a veth pair that the kernel forwards, with the lab's name server."""
    with serving(place), _plain_guest() as namespace:
        return {f"plain.{name}": value for name, value in _measure(namespace, DNS).items()}


def in_vm(place: Place) -> dict[str, float]:
    """One fork with two network cards, in turn: its own behind the guard, and one whose tap the kernel forwards.

    The same guest, because under emulation how warm its translated code is makes more of a difference than any filter.
    """
    profile = place.lab.scratch / "traffic.yaml"
    profile.write_text(place.profile.read_text() + f"egress: {{allow: [{{host: {NAME}, ports: [{PORT}]}}]}}\n")
    taken: dict[str, list[float]] = {}
    with serving(place), applied(place, "bench-traffic", profile):
        way = place.find_way("bench-traffic")
        assert way is not None
        with closing(attempt(way)) as client, _second_card(client, "ktrdr-bench-traffic"):
            with client.open_sftp() as files:
                files.put(str(Path(__file__).with_name("traffic.py")), "traffic.py")
            # The name is looked up once: under emulation a lookup is mostly the guest's own time.
            ways = {"vmguard": (NAME, "system"), "vmplain": (PLAIN_SERVER, PLAIN_SERVER)}
            for turn in range(TURNS + 1):
                for prefix, (name, resolver) in ways.items():
                    said = _tell(client, f"python3 traffic.py reach {name} {PORT} {resolver} {SIZE} {REQUESTS}")
                    for key, value in json.loads(said).items() if turn else ():  # the first one makes the code warm
                        taken.setdefault(f"{prefix}.{key}", []).append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


@contextmanager
def _second_card(client: SSHClient, domain: str) -> Iterator[None]:
    """Plugged into the machine that runs; the guest takes it for the way to PLAIN_SERVER and nothing else."""
    ip(f"tuntap add dev {_TAP} mode tap")
    try:
        ip(f"addr add {GATEWAY}/30 dev {_TAP}")
        ip(f"link set {_TAP} up")
        xml = (
            f"<interface type='ethernet'><mac address='{_MAC}'/><target dev='{_TAP}' managed='no'/><model"
            " type='virtio'/></interface>"
        )
        with closing(Libvirt()) as libvirt:
            libvirt.attach(domain, xml)
        find = f"basename $(dirname $(grep -l {_MAC} /sys/class/net/*/address))"
        card = _tell(client, f"for try in $(seq 50); do {find} 2>/dev/null && break; sleep 0.2; done").split()[-1]
        reach = f"sudo ip link set {card} up && sudo ip route add {PLAIN_SERVER} via {GATEWAY}"
        _tell(client, f"sudo ip addr add {ADDRESS}/30 dev {card} && {reach}")
        yield
    finally:
        ip(f"link del {_TAP}")


def _tell(client: SSHClient, command: str) -> str:
    _, out, error = client.exec_command(command, timeout=300)
    said: str = out.read().decode()
    if out.channel.recv_exit_status() != 0:
        raise RuntimeError(error.read().decode()[-1000:])
    return said


def _time_set_up(guest: NamespaceGuest) -> dict[str, float]:
    """Milliseconds to make the namespace and its filter, and these with the guard, as `apply` makes them."""
    guest.paths.directory.mkdir(mode=0o711)
    began = time.monotonic()
    guest.host_namespace.create()
    guest.firewall.create()
    filter_ready = time.monotonic()
    guest.guard.create()
    ready = time.monotonic()
    guest.guard.remove()
    guest.firewall.remove()
    guest.host_namespace.remove()
    guest.paths.ledger.unlink(missing_ok=True)
    guest.paths.directory.rmdir()
    return {"filter": (filter_ready - began) * 1000, "setup": (ready - began) * 1000}


@contextmanager
def _plain_guest() -> Iterator[str]:
    name = make_namespace("plainguest")
    try:
        ip(f"link add plain0 type veth peer name eth0 netns {name}")
        ip("addr add 10.213.250.1/30 dev plain0")
        ip("link set plain0 up")
        ip("addr add 10.213.250.2/30 dev eth0", name)
        ip("link set eth0 up", name)
        ip("route add default via 10.213.250.1", name)
        yield name
    finally:
        _forget(name, "plain0")


@contextmanager
def serving(place: Place) -> Iterator[None]:
    """A server out there that is quicker than what is measured, on a wire of its own: the lab's other wires are
    listened to."""
    place.lab.world.dns.zone[NAME] = [("A", SERVER)]
    make_namespace("traffic")
    try:
        ip("link add traffic0 type veth peer name out netns traffic")
        ip("addr add 192.0.2.1/24 dev traffic0")
        ip("link set traffic0 up")
        for address in (SERVER, PLAIN_SERVER):
            ip(f"addr add {address}/24 dev out", "traffic")
        ip("link set out up", "traffic")
        ip("route add default via 192.0.2.1", "traffic")
        script = str(Path(__file__).with_name("traffic.py"))
        argv = ["ip", "netns", "exec", "traffic", sys.executable, script, "serve", "", str(PORT), str(SIZE)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield
            finally:
                process.kill()
    finally:
        _forget("traffic", "traffic0")


def _forget(namespace: str, link: str) -> None:
    """The link first: the kernel takes a namespace's own away some time after it."""
    with suppress(RuntimeError):
        ip(f"link del {link}")
    remove_namespace(namespace)


def _measure(namespace: str, resolver: str) -> dict[str, float]:
    """Seconds for the download and for the requests; milliseconds for a new connection, until its first answered byte,
    and for an event of a stream, until it is there."""
    words = ["ask", NAME, str(PORT), resolver, str(SIZE), str(REQUESTS)]
    argv = ["ip", "netns", "exec", namespace, sys.executable, str(Path(__file__).with_name("traffic.py")), *words]
    done = subprocess.run(argv, capture_output=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode()[-1000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found
