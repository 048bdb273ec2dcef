"""KVM or software emulation, found by booting something. A /dev/kvm that opens can still abort QEMU or hang every guest."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ktrdr_vm.host import process

EMULATOR = "qemu-system-x86_64"
CACHE = Path("/run/ktrdr-vm/accelerator.json")
# What works answers in a tenth of it, on a host that is not busy.
SECTOR_LIMIT = 2.0
KERNEL_LIMIT = 10.0
# Seconds that the same may take under emulation, when KVM has not answered in time: a host may be that slow, or that busy.
EMULATION_LIMIT = 30.0

# A boot sector: mov al,0x2a; mov dx,0xf4; out dx,al; jmp $. SeaBIOS reads no disk of one
# sector, hence the zeros. QEMU's isa-debug-exit ends with (0x2a << 1) | 1.
_SECTOR = bytes.fromhex("b02abaf400eeebfe").ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)
_EXPECTED = (0x2A << 1) | 1
_HUNG = "a test guest hung"
# Times longer than emulation that KVM may take. It is faster where it is not itself emulated.
_PATIENCE = 3.0


@dataclass(frozen=True)
class Accelerator:
    """The verdict and why. `certain` is False when nobody could try, because that needs root or QEMU."""

    name: Literal["kvm", "tcg"]
    reason: str
    certain: bool = True


def find_accelerator(kernel: Path | None = None) -> Accelerator:
    """The verdict for this boot of the host: cached, else tried. With `kernel`, a Linux must come up as well."""
    boot = _boot_id()
    cached = _read_cache(boot)
    if cached is not None:
        return cached
    if not Path("/dev/kvm").exists():
        return Accelerator("tcg", "/dev/kvm is not there")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "/dev/kvm may not be opened by this user, so it was not tried", certain=False)
    if process.find_program(EMULATOR) is None:
        return Accelerator("tcg", "QEMU is not installed, so KVM was not tried", certain=False)
    verdict = _try(kernel)
    if os.geteuid() == 0 and (kernel is not None or verdict.name == "tcg"):
        CACHE.parent.mkdir(mode=0o755, exist_ok=True)
        CACHE.write_text(json.dumps({"boot": boot, **asdict(verdict)}))
    return verdict


def _try(kernel: Path | None) -> Accelerator:
    with tempfile.TemporaryDirectory() as scratch:
        sector = Path(scratch, "sector")
        sector.write_bytes(_SECTOR)
        disk = ["-drive", f"file={sector},format=raw,if=none,id=disk,readonly=on", "-device", "virtio-blk-pci,drive=disk"]
        sector_words = [*disk, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        tries = [(sector_words, _EXPECTED, SECTOR_LIMIT)]
        if kernel is not None:
            # Without a root it panics, and with panic=-1 that is a reboot, which -no-reboot makes the end.
            tries.append((["-kernel", str(kernel), "-append", "panic=-1 quiet"], 0, KERNEL_LIMIT))
        for words, expected, limit in tries:
            failure = _boot(words, expected, limit)
            if failure.startswith(_HUNG):
                # Hangs and slowness look the same until something that surely works is tried beside it.
                slowness = _time_emulation(sector_words) / SECTOR_LIMIT * _PATIENCE
                failure = _boot(words, expected, limit * max(1.0, slowness))
            if failure:
                break
    if failure:
        return Accelerator("tcg", f"KVM does not work here: {failure}")
    return Accelerator("kvm", "a test guest ran under KVM")


def _time_emulation(words: list[str]) -> float:
    """Seconds until the same guest has come up under emulation; at most EMULATION_LIMIT."""
    began = time.monotonic()
    _boot(words, _EXPECTED, EMULATION_LIMIT, accelerator="tcg", cpu="qemu64")
    return time.monotonic() - began


def _boot(extra: list[str], expected: int, limit: float, *, accelerator: str = "kvm", cpu: str = "host") -> str:
    """Why the guest did not come up, or nothing."""
    # -M q35 and -cpu host as in real domains; no network, no display, nothing on disk.
    argv = [
        EMULATOR,
        "-accel",
        accelerator,
        "-M",
        "q35",
        "-cpu",
        cpu,
        "-m",
        "128",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        *extra,
    ]
    started = process.start(argv, stderr=subprocess.PIPE)
    assert started.stderr is not None
    end = time.monotonic() + limit
    try:
        while started.poll() is None:
            if time.monotonic() > end:
                return f"{_HUNG} for {limit:.3g} s"
            time.sleep(0.01)
        if started.returncode != expected:
            message = started.stderr.read(2000).decode("utf-8", "replace").strip().splitlines()
            return message[0] if message else f"QEMU ended with {started.returncode}"
        return ""
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        started.stderr.close()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read_cache(boot: str) -> Accelerator | None:
    try:
        content = json.loads(CACHE.read_bytes())
        if content.pop("boot") == boot and CACHE.stat().st_uid == 0:
            return Accelerator(**content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None
