"""What of ours is on the host, looked at with the host's own tools and not with the program's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from ktrdr_vm.host.libvirt import Libvirt
from laboratory.lab import Lab


def take_inventory(lab: Lab, libvirt: Libvirt) -> dict[str, list[str]]:
    """Domains, namespaces, interfaces, tables, mounts, directories, locks and processes, each sorted."""
    return {
        "domains": sorted(domain.name() for domain in libvirt.connect().listAllDomains()),
        "links": sorted(link["ifname"] for link in _json("ip", "-j", "link", "show")),
        "tables": sorted(
            entry["table"]["name"] for entry in _json("nft", "-j", "list", "tables")["nftables"] if "table" in entry
        ),
        "namespaces": sorted(path.name for path in Path("/run/netns").iterdir()),
        "mounts": sorted(
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(lab.home.root) in line
        ),
        "instances": sorted(path.name for path in lab.home.instances.iterdir()),
        "locks": sorted(path.name for path in lab.home.locks.iterdir()) if lab.home.locks.exists() else [],
        "processes": sorted(_processes(str(lab.home.root))),
    }


def _json(*argv: str):  # type: ignore[no-untyped-def]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout or b"[]")


def _processes(marker: str) -> list[str]:
    """Guards, proxies and QEMUs that name the lab's home; the test's own processes do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            line = " ".join(words)
            if marker in line and (
                "qemu-system" in words[0] or "ktrdr_vm.egress.guard" in line or words[0].endswith("haproxy")
            ):
                found.append(line[:120])
    return found
