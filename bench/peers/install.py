"""Each tool in a place of its own, kept for the next run; nothing of them is on the host.

What is changed in a tool, so that it runs where there is no KVM, stands here and nowhere else.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.place import ROOT

PLACES = ROOT / ".bench"
SUITE = "bookworm"
# Debian packages of each root. `tools` is what libvirt, virt-lightning and the images need, whoever asks.
ROOTS = {
    "tools": ("dnsmasq-base", "genisoimage", "grub-common", "grub-pc-bin"),
    "virt-install": ("virtinst", "xorriso", "qemu-utils"),
    "debvm-run": ("debvm", "qemu-system-x86", "e2fsprogs"),
    "vagrant-libvirt": ("vagrant", "vagrant-libvirt", "openssh-client", "qemu-utils"),
}
VIRT_LIGHTNING = "2.5.0"
# Line of virt-lightning as released, and what stands there instead. It takes KVM wherever libvirt names it, the host's
# processor, and insists on a folder of the machine's own.
PATCHES = {
    "virt_lightning.py": (
        ("return sorted(available)[0]", 'return os.environ["BENCH_DOMAIN_TYPE"]'),
        ('DEFAULT_STORAGE_DIR = "/var/lib/virt-lightning/pool"', 'DEFAULT_STORAGE_DIR = os.environ["BENCH_POOL"]'),
        (
            "root = ET.fromstring(DOMAIN_XML)",
            'root = ET.fromstring(DOMAIN_XML.replace("BENCH_CPU", os.environ["BENCH_CPU"]))',
        ),
    ),
    "templates.py": (
        ("<cpu mode='host-model' check='partial'>\n    <model fallback='allow'/>\n  </cpu>", "BENCH_CPU"),
    ),
}


def install_root(name: str) -> str:
    """Packages into a root by mmdebstrap. Why that is not possible, or nothing."""
    root = PLACES / name
    if (root / ".complete").exists():
        return ""
    shutil.rmtree(root, ignore_errors=True)
    PLACES.mkdir(exist_ok=True)
    return _finish(
        root, ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(ROOTS[name])}", SUITE, str(root)]
    )


def install_virt_lightning() -> str:
    """From the package index into an environment of its own, then patched. Why that is not possible, or nothing."""
    place = PLACES / "virt-lightning"
    if (place / ".complete").exists():
        return ""
    shutil.rmtree(place, ignore_errors=True)
    PLACES.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return _finish(place, [*pip, f"virt-lightning=={VIRT_LIGHTNING}"], patch=True)


def _finish(place: Path, argv: list[str], *, patch: bool = False) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        return f"it does not install: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    if patch:
        for package in place.glob("lib/python*/site-packages/virt_lightning"):
            for file, changes in PATCHES.items():
                try:
                    (package / file).write_text(apply_patches((package / file).read_text(), changes))
                except ValueError as error:
                    return f"its {file} is another one than was looked at: {error}"
    (place / ".complete").touch()
    return ""


def apply_patches(text: str, changes: tuple[tuple[str, str], ...]) -> str:
    """Every piece must be there exactly once, or the release is another one than was looked at."""
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{old!r} is there {text.count(old)} times")
        text = text.replace(old, new)
    return text


def make_wrapper(folder: Path, name: str, program: str) -> None:
    """A program of the `tools` root that the host can call: with the loader and libraries of that root."""
    tools = PLACES / "tools"
    libraries = tools / "usr/lib/x86_64-linux-gnu"
    wrapper = folder / name
    wrapper.write_text(
        f'#!/bin/sh\nexec {tools}/lib64/ld-linux-x86-64.so.2 --library-path {libraries} {tools}/{program} "$@"\n'
    )
    wrapper.chmod(0o755)
