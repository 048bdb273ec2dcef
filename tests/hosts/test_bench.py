"""The bench runs under KVM. In a box its times have no meaning."""

from __future__ import annotations

from box.machine import LIMIT, Box
from box.root import CLONE

# The lab's own state, with the image that is there already.
_LAB = "/var/lib/ktrdr-vm-lab"
_COPY = f"mkdir -m 711 {_LAB} && cp -a --sparse=always /var/lib/ktrdr-vm/images {_LAB}"


def test_the_bench_runs_under_kvm(box: Box) -> None:
    box.run(_COPY, limit=300).require()
    bench = f"cd {CLONE} && KTRDR_VM_LAB_HOME={_LAB} .venv/bin/python -m bench --kvm --only raw,fork --rounds 1"
    said = box.run(bench, limit=LIMIT, step="bench --kvm: raw QEMU, a template, a fork").require()
    medians = {name: float(value) for name, value in (line.split() for line in said.out.splitlines())}
    assert {"raw.ssh", "template", "fork.ssh", "fork.ready", "destroy"} <= set(medians), said.out
    assert all(value > 0 for value in medians.values())
