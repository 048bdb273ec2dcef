"""The Debian package depends on what `doctor` searches for, and on a distribution of each dependency."""

from __future__ import annotations

import re

from ktrdr_vm.host.paths import PROJECT

# Part of every Debian.
ESSENTIAL = {"util-linux"}


def test_it_depends_on_every_package_that_a_host_needs() -> None:
    listed = [line.split()[0] for line in (PROJECT / "ktrdr_vm/host/packages.txt").read_text().splitlines()]
    needed = {name for name in listed if name and name != "#"} - ESSENTIAL
    control = (PROJECT / "debian/control").read_text()
    depends = re.search(r"^Depends:\n((?: .*\n)+)", control, re.MULTILINE)
    assert depends is not None
    named = {line.split()[0].rstrip(",") for line in depends[1].splitlines()}
    assert needed <= named and "python3-libvirt" in named
    # Nothing else is named by hand; the libraries come from pyproject.toml.
    assert {name for name in named if not name.startswith("$")} - needed == {"python3-libvirt"}
