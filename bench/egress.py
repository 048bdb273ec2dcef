"""Rows about the guard: a guest that is a network namespace, with the real firewall, guard and tap, and the same without any of them.

A namespace and no VM, because emulation would hide what the filter costs behind what the guest's own network stack costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from laboratory.namespaces import ip, make_namespace, remove_namespace
from laboratory.netguest import NamespaceGuest
from laboratory.world import DNS

from bench.machines import applied, raw_machine, read_pss
from bench.place import Place
from bench.prober import Way, attempt
from bench.traffic import NAME
from ktrdr_vm.resources.guard import find_guards

SERVER, PORT = "192.0.2.80", 443
SIZE, REQUESTS = 500_000_000, 200


def filtered(place: Place) -> dict[str, float]:
    allow = [{"host": NAME, "ports": [PORT]}]
    with _server(place):
        guest = NamespaceGuest(place.lab.home, allow)
        place.lab.instance_ids.add(guest.identity.instance_id)
        taken = _time_set_up(guest)
        with guest:
            measured = _measure(guest.namespace, guest.gateway)
            memory = sum(read_pss(pid) for pid in find_guards(guest.paths.guard))
    return {f"guard.{name}": value for name, value in (measured | taken | {"memory": memory}).items()}


def unfiltered(place: Place) -> dict[str, float]:
    """The same namespace on a veth pair that the kernel forwards, with the lab's name server."""
    with _server(place), _plain_guest() as namespace:
        return {f"plain.{name}": value for name, value in _measure(namespace, DNS).items()}


def in_vm(place: Place) -> dict[str, float]:
    """A fork behind its guard, and then the same machine by hand on a tap that the kernel forwards."""
    profile = place.lab.scratch / "traffic.yaml"
    profile.write_text(place.profile.read_text() + f"egress: {{allow: [{{host: {NAME}, ports: [{PORT}]}}]}}\n")
    with _server(place):
        with applied(place, "bench-traffic", profile):
            way = place.find_way("bench-traffic")
            assert way is not None
            filtered = _measure_vm(way, NAME, "system")
        with raw_machine(place) as (way, _):
            unfiltered = _measure_vm(way, SERVER, SERVER)
    return {f"vmguard.{name}": value for name, value in filtered.items()} | {f"vmplain.{name}": value for name, value in unfiltered.items()}


def _measure_vm(way: Way, name: str, resolver: str) -> dict[str, float]:
    """From inside the guest, with the name looked up once: under emulation a lookup is mostly the guest's own time."""
    with closing(attempt(way)) as client:
        with client.open_sftp() as files:
            files.put(str(Path(__file__).with_name("traffic.py")), "traffic.py")
        _, out, error = client.exec_command(f"python3 traffic.py reach {name} {PORT} {resolver} {SIZE} {REQUESTS}", timeout=300)
        said = out.read()
        if out.channel.recv_exit_status() != 0:
            raise RuntimeError(error.read().decode()[-1000:])
    found: dict[str, float] = json.loads(said)
    return found


def _time_set_up(guest: NamespaceGuest) -> dict[str, float]:
    """Milliseconds to make the filter, and the filter with its guard, as `apply` makes them."""
    guest.paths.directory.mkdir(mode=0o711)
    began = time.monotonic()
    guest.firewall.create()
    filter_ready = time.monotonic()
    guest.guard.create()
    ready = time.monotonic()
    guest.guard.remove()
    guest.firewall.remove()
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
def _server(place: Place) -> Iterator[None]:
    """A server out there that is quicker than what is measured, on a wire of its own: the lab's other wires are listened to."""
    place.lab.world.dns.zone[NAME] = [("A", SERVER)]
    make_namespace("traffic")
    try:
        ip("link add traffic0 type veth peer name out netns traffic")
        ip("addr add 192.0.2.1/24 dev traffic0")
        ip("link set traffic0 up")
        ip(f"addr add {SERVER}/24 dev out", "traffic")
        ip("link set out up", "traffic")
        ip("route add default via 192.0.2.1", "traffic")
        script = str(Path(__file__).with_name("traffic.py"))
        argv = ["ip", "netns", "exec", "traffic", sys.executable, script, "serve", SERVER, str(PORT), str(SIZE)]
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
    """Seconds for the download and for the requests; milliseconds for a new connection, until its first answered byte."""
    words = ["ask", NAME, str(PORT), resolver, str(SIZE), str(REQUESTS)]
    argv = ["ip", "netns", "exec", namespace, sys.executable, str(Path(__file__).with_name("traffic.py")), *words]
    done = subprocess.run(argv, capture_output=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode()[-1000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found
