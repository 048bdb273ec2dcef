"""`python -m bench`: rounds of everything, in another order each time, then the results. `--quick` leaves out the
peers."""

from __future__ import annotations

import argparse
import compileall
import functools
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from bench.place import ROOT, Place, find_or_build_image, prepared_place  # first: it knows where the lab's parts are

from bench import commands, egress, gates, machines, prepared, worlds  # isort: skip
from bench.document import describe_machine, write_results
from bench.peers import find_steps, install_peers
from bench.rows import Samples
from ktrdr_vm.host.accelerator import find_accelerator

Step = Callable[[Place], dict[str, float]]

# Name, step, and in how many of the rounds: 1 is every one, 2 every second.
STEPS: dict[str, tuple[Step, int]] = {
    "raw": (machines.raw, 1),
    "cold": (machines.cold, 1),
    "fork": (machines.fork, 1),
    "forks3": (functools.partial(machines.forks, count=3), 1),
    "forks10": (functools.partial(machines.forks, count=10), 3),
    "memory": (machines.memory, 3),
    "rest": (machines.resting, 3),
    "commands": (commands.quickness, 1),
    "gate": (gates.small_tasks, 1),
    "copy": (commands.copying, 3),
    "filtered": (egress.filtered, 1),
    "unfiltered": (egress.unfiltered, 1),
    "traffic": (egress.in_vm, 3),
    "uplink": (worlds.uplink, 1),
}
# What a quick run has no time for.
SLOW: dict[str, tuple[Step, int]] = {"prepared": (prepared.prepared, 3)}
# What emulation distorts most.
DISTORTED = {"fork", "forks3", "forks10", "memory", "prepared", "raw", "cold"}
# Seconds of a quick run after which no further round begins; a round takes some three minutes in emulation.
QUICK_S = 480.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without peers, under fifteen minutes")
    parser.add_argument(
        "--kvm", action="store_true", help="on a host with working KVM; what emulation distorts comes first"
    )
    parser.add_argument("--rounds", type=int, help="how many; default 5, in a quick run as many as fit")
    parser.add_argument("--only", default="", help="these steps alone, separated by commas; writes no document")
    words = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root, for network namespaces", file=sys.stderr)
        return 3
    only = set(words.only.split(",")) - {""}
    rounds = words.rounds or (6 if words.quick else 5)
    samples, began, done = Samples(), time.monotonic(), 0
    failed: set[str] = set()
    image = find_or_build_image()
    assert image is not None
    found = find_accelerator(image.kernel)
    if words.kvm and found.name != "kvm":
        print(
            f"bench: --kvm needs a host where KVM works: {found.reason}; `ktrdr-vm doctor` says what to do",
            file=sys.stderr,
        )
        return 3
    steps = dict(STEPS)
    if not words.quick:
        steps |= SLOW
        # Only what is asked for: making the images takes minutes the first time.
        if not only or only - set(steps) - {"template"}:
            steps |= find_steps(install_peers(image, found.name))
    unknown = only - set(steps) - {"template"}
    if unknown:
        print(f"bench: there is no step {', '.join(sorted(unknown))}; there are {', '.join(steps)}", file=sys.stderr)
        return 2
    # As an installed program: the guard writes no bytecode, and no command does with PYTHONDONTWRITEBYTECODE. Sources
    # that were changed since would be compiled again at each start.
    compileall.compile_dir(ROOT / "ktrdr_vm", quiet=1)
    # Ended from outside it takes down what is running, as Ctrl-C does: only libvirtd ends with this process by itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with prepared_place() as place:
        command = "make bench-kvm" if words.kvm else "make bench-quick" if words.quick else "make bench"
        machine = describe_machine(found.name, rounds, command)
        for number in range(rounds):
            if words.quick and number and time.monotonic() - began > QUICK_S:
                break
            # The template first: the forks of the round stand on it.
            order = [name for name, (_, every) in steps.items() if number % every == 0 and (not only or name in only)]
            random.shuffle(order)
            if words.kvm:
                order.sort(key=lambda name: name not in DISTORTED)
            if number % 3 == 0 and (
                not only or only & {"template", "fork", "forks3", "forks10", "memory", "copy", "rest", "traffic"}
            ):
                _measure(place, "template", machines.template, number, samples, failed)
            for name in order:
                _measure(place, name, steps[name][0], number, samples, failed)
            done = number + 1
    machine = machine.replace(f"{rounds} rounds", f"{done} rounds")
    if only:
        for name in samples.names():
            print(f"{name} {samples.median(name):.4g}")
    else:
        results = write_results(samples, machine, kvm=words.kvm)
        print(
            f"bench: {len(results)} rows in {time.monotonic() - began:.0f} s; results and docs/performance.md are"
            " written"
        )
    for name in sorted(failed):
        print(f"bench: {name} failed at least once, see above", file=sys.stderr)
    return 1 if failed else 0


def _measure(place: Place, name: str, step: Step, number: int, samples: Samples, failed: set[str]) -> None:
    began = time.monotonic()
    try:
        found = step(place)
    except Exception as error:  # one that does not work hides no other
        failed.add(name)
        print(f"round {number + 1} {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return
    samples.add(number, found)
    said = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
    print(f"round {number + 1} {name} ({time.monotonic() - began:.0f} s): {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
