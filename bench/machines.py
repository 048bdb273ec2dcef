"""Rows about machines: raw QEMU as the floor, a cold boot, forks, their memory, their rest, their end."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from laboratory.namespaces import ip

from bench.place import DISK, LIMIT, MEMORY, PROGRAM, VCPUS, Place, finish
from bench.prober import Watch, Way, watch
from ktrdr_vm.host.keys import generate_keypair
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import MACHINE, gather
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.instance.resources.seed import make_seed
from ktrdr_vm.plan.cloud_init import render_meta_data, render_network_config, render_user_data
from ktrdr_vm.plan.domain_xml import EMULATED_CPU, make_kernel_arguments
from ktrdr_vm.plan.facts import Allocation, Facts
from ktrdr_vm.plan.guard_interface import GUEST_MAC

# Those that are not ours take turns at one address.
GATEWAY, ADDRESS = "10.250.0.1", "10.250.0.2"
# A guest is idle when what its boot has started has ended.
SETTLE_S = 10.0


def raw(place: Place) -> dict[str, float]:
    with raw_machine(place) as (_, seen):
        return {"raw.ssh": seen.ssh, "raw.ready": seen.ready}


@contextmanager
def raw_machine(place: Place) -> Iterator[tuple[Way, Watch]]:
    """QEMU by hand: an overlay, the same seed, the same kernel, processor, memory, cache and network card. Nothing
    else."""
    folder = place.lab.scratch / "raw"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    facts = find_facts(place)
    began = time.monotonic()
    login, documents = make_documents(place, "raw")
    (folder / "seed.iso").write_bytes(make_seed(documents))
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            place.image.disk_format,
            "-b",
            place.image.disk,
            folder / "disk",
            f"{DISK}M",
        ],
        check=True,
    )
    for line in ("tuntap add dev rawtap mode tap", f"addr add {GATEWAY}/30 dev rawtap", "link set rawtap up"):
        ip(line)
    cpu = (
        ["-accel", "kvm", "-cpu", "host"]
        if facts.accelerator == "kvm"
        else ["-accel", "tcg", "-cpu", f"{EMULATED_CPU},-vmx,-svm"]
    )
    words = [
        facts.emulator,
        "-machine",
        MACHINE,
        *cpu,
        "-m",
        str(MEMORY),
        "-smp",
        str(VCPUS),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        f"file:{folder}/console.log",
        "-kernel",
        place.image.kernel,
        "-initrd",
        place.image.initrd,
        "-append",
        make_kernel_arguments(facts),
        "-drive",
        f"file={folder}/disk,if=virtio,format=qcow2,cache=unsafe,discard=unmap,detect-zeroes=unmap",
        "-drive",
        f"file={folder}/seed.iso,if=virtio,format=raw,readonly=on",
        "-netdev",
        "tap,id=net,ifname=rawtap,script=no,downscript=no",
        "-device",
        f"virtio-net-pci,netdev=net,mac={GUEST_MAC}",
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL)
    try:
        way = Way(ADDRESS, place.image.user, login)
        yield way, watch(lambda: way, began).wait()
    finally:
        process.kill()
        process.wait()
        ip("tuntap del dev rawtap mode tap")


def find_facts(place: Place) -> Facts:
    return gather(place.profile, home=place.lab.home, workspace=place.lab.scratch, instance_id="raw").plan.facts


def make_documents(place: Place, name: str) -> tuple[str, dict[str, bytes]]:
    """A login, and the three documents of a seed that lets it in at ADDRESS."""
    identity = parse_instance_id(name)
    (host_key, host_public), (login, login_public) = generate_keypair(), generate_keypair()
    allocation = Allocation(
        GATEWAY, ADDRESS, host_key=host_key, host_public_key=host_public, login_public_key=login_public
    )
    documents = {
        "user-data": render_user_data(identity, find_facts(place), allocation).encode(),
        "meta-data": render_meta_data(identity).encode(),
        "network-config": render_network_config(allocation).encode(),
    }
    return login, documents


def cold(place: Place) -> dict[str, float]:
    with applied(place, "bench-cold", "--cold") as seen:
        return {"cold.ssh": seen.ssh, "cold.docker": seen.docker, "cold.ready": seen.ready}


def template(place: Place) -> dict[str, float]:
    """Built from nothing each time; the forks of the round then come from it."""
    for key in [path.name for path in place.lab.home.templates.iterdir() if not path.name.startswith(".")]:
        place.command("templates", "remove", key)
    return {"template": place.command("templates", "build", place.profile)}


def fork(place: Place) -> dict[str, float]:
    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(_watch_resume, "ktrdr-bench-fork", time.monotonic())
        process, seen = place.start("bench-fork")
        finish(process, seen)
    return {
        "fork.resumed": resumed.result(),
        "fork.ssh": seen.ssh,
        "fork.ready": seen.ready,
        "fork.handshake": seen.handshake,
        "fork.proxy": min(_time_proxy(place, "bench-fork") for _ in range(5)),
        "destroy": place.command("destroy", "bench-fork"),
    }


def _watch_resume(domain: str, began: float) -> float:
    """Seconds until the guest of a fork executes its first instruction."""
    with closing(Libvirt()) as libvirt:
        while time.monotonic() - began < LIMIT:
            facts = libvirt.find(domain)
            if facts is not None and facts.state == "running":
                return time.monotonic() - began
            time.sleep(0.01)
    raise TimeoutError(f"{domain} was never resumed")


def _time_proxy(place: Place, instance_id: str) -> float:
    """Seconds from the start of `proxy` to the first byte of the guest's sshd."""
    began = time.monotonic()
    with subprocess.Popen(
        [PROGRAM, "proxy", instance_id], env=place.lab.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as proxy:
        assert proxy.stdout is not None and proxy.stdout.read(1) == b"S"
        taken = time.monotonic() - began
        proxy.kill()
    return taken


def forks(place: Place, count: int) -> dict[str, float]:
    """All at once; the last one counts."""
    started = [place.start(f"bench-fork{number}") for number in range(count)]
    try:
        # Also when one fails the others are waited for: nothing of this step runs beside the next.
        ended = [_end(*one) for one in started]
        seen = [one for one in ended if isinstance(one, Watch)]
        if len(seen) < count:
            raise RuntimeError("; ".join(str(one) for one in ended if isinstance(one, Exception)))
    finally:
        place.command("destroy", *[f"bench-fork{number}" for number in range(count)], check=False)
    return {f"forks{count}.ssh": max(one.ssh for one in seen), f"forks{count}.ready": max(one.ready for one in seen)}


def _end(process: subprocess.Popen[bytes], seen: Watch) -> Watch | Exception:
    try:
        return finish(process, seen)
    except Exception as error:  # told by the one who waits for all
        return error


def memory(place: Place) -> dict[str, float]:
    """What the host has less of for the first idle fork, and for a second one beside it: QEMU and guard, in MB of
    PSS."""
    with applied(place, "bench-first"):
        time.sleep(SETTLE_S)
        alone = measure_pss(place, "bench-first")
        with applied(place, "bench-second"):
            time.sleep(SETTLE_S)
            both = measure_pss(place, "bench-first") + measure_pss(place, "bench-second")
    return {"memory.first": alone, "memory.second": both - alone}


def resting(place: Place) -> dict[str, float]:
    """An idle fork goes to the disk and comes back."""
    with applied(place, "bench-rest"):
        saved = place.command("suspend", "bench-rest")
        began = time.monotonic()
        process = subprocess.Popen(
            [PROGRAM, "resume", "bench-rest"],
            env=place.lab.environment,
            cwd=place.lab.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seen = watch(lambda: place.find_way("bench-rest"), began)
        if process.wait(LIMIT) != 0:
            raise RuntimeError("resume failed")
        return {"suspend": saved, "resume.ssh": seen.wait().ssh}


@contextmanager
def applied(place: Place, instance_id: str, *more: str | Path) -> Iterator[Watch]:
    """An instance that answers, and is destroyed at the end."""
    try:
        yield finish(*place.start(instance_id, *more))
    finally:
        place.command("destroy", "--yes", instance_id, check=False)


def measure_pss(place: Place, instance_id: str) -> float:
    directory = place.lab.home.instance(instance_id).directory
    return sum(
        read_pss(pid) for pid in (*find_qemu(f"ktrdr-{instance_id}", directory), *find_guards(directory / "guard"))
    )


def read_pss(pid: int) -> float:
    """MB that this process has for itself, and its share of what it has with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    return 0.0
