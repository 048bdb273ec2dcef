"""KVM or software emulation (TCG), determined by booting a test guest: an existing /dev/kvm can still abort QEMU or
hang every guest."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ktrdr_vm.host import process
from ktrdr_vm.users import UNMAPPED, in_user_namespace

EMULATOR = "qemu-system-x86_64"
CACHE = Path("/run/ktrdr-vm/accelerator.json")
# Seconds. A working KVM needs a tenth of it on an idle host.
SECTOR_LIMIT = 2.0
KERNEL_LIMIT = 10.0
# Seconds that the same guest may take under emulation, if KVM did not answer in time because the host is slow or busy.
EMULATION_LIMIT = 30.0

# A boot sector: mov al,0x2a; mov dx,0xf4; out dx,al; jmp $. SeaBIOS reads no disk of one
# sector, hence the zeros. QEMU's isa-debug-exit ends with (0x2a << 1) | 1.
_SECTOR = bytes.fromhex("b02abaf400eeebfe").ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)
_EXPECTED = (0x2A << 1) | 1
_HUNG = "a test guest did not end"
# KVM may take this many times longer than emulation. It is faster unless it is emulated itself.
_PATIENCE = 3.0


@dataclass(frozen=True)
class Accelerator:
    """The verdict and its reason. `certain` is False if no test was possible, which requires root and QEMU."""

    name: Literal["kvm", "tcg"]
    reason: str
    certain: bool = True


def find_accelerator(kernel: Path | None = None) -> Accelerator:
    """The verdict for this boot of the host: cached, else tested. With `kernel`, a Linux kernel must boot as well."""
    if sys.platform != "linux":
        return Accelerator("tcg", "this system is not Linux, so VMs run at a place only")
    boot = _boot_id()
    cached = _read_cache(boot)
    if cached is not None:
        return cached
    if not Path("/dev/kvm").exists():
        return Accelerator("tcg", "/dev/kvm does not exist")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "this user may not open /dev/kvm, so it was not tested", certain=False)
    if not _may_qemu_open():
        return Accelerator(
            "tcg", "QEMU runs as a subordinate user, whom only a line of /etc/subgid lets open /dev/kvm; see `doctor`"
        )
    if process.find_program(EMULATOR) is None:
        return Accelerator("tcg", "QEMU is not installed, so KVM was not tested", certain=False)
    verdict = _try(kernel)
    if os.geteuid() == 0 and (kernel is not None or verdict.name == "tcg"):
        # Where /run cannot be written, as in some containers, the next command tests again.
        with contextlib.suppress(OSError):
            CACHE.parent.mkdir(mode=0o755, exist_ok=True)
            CACHE.write_text(json.dumps({"boot": boot, **asdict(verdict)}))
    return verdict


def _may_qemu_open() -> bool:
    """True unless the user of QEMU in a world could not open /dev/kvm, though the person can."""
    # Imported late, as below: a host is tested once in a boot.
    from ktrdr_vm.host.sub_ids import find_kvm_group

    facts = Path("/dev/kvm").stat()
    if facts.st_mode & 0o006 == 0o006 or (os.geteuid() == 0 and not in_user_namespace()):
        return True
    return facts.st_gid != UNMAPPED if in_user_namespace() else find_kvm_group(os.getuid()) is not None


def _try(kernel: Path | None) -> Accelerator:
    with contextlib.ExitStack() as files:
        # By descriptor: the user of QEMU in a world cannot enter the folders of this one.
        sector = files.enter_context(tempfile.TemporaryFile())
        sector.write(_SECTOR)
        sector.flush()
        os.fchmod(sector.fileno(), 0o444)
        disk = [
            "-drive",
            f"file=/dev/fd/{sector.fileno()},format=raw,if=none,id=disk,readonly=on",
            "-device",
            "virtio-blk-pci,drive=disk",
        ]
        sector_words = _Guest((*disk, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"), sector.fileno())
        tries = [(sector_words, _EXPECTED, SECTOR_LIMIT)]
        if kernel is not None:
            opened = files.enter_context(kernel.open("rb")).fileno()
            # Without a root file system it panics, panic=-1 makes that a reboot, and -no-reboot ends QEMU then.
            tries.append(
                (_Guest(("-kernel", f"/dev/fd/{opened}", "-append", "panic=-1 quiet"), opened), 0, KERNEL_LIMIT)
            )
        for words, expected, limit in tries:
            failure = _boot(words, expected, limit)
            if failure.startswith(_HUNG):
                # A hang can be distinguished from slowness only by comparison with emulation, which works.
                slowness = _time_emulation(sector_words) / SECTOR_LIMIT * _PATIENCE
                failure = _boot(words, expected, limit * max(1.0, slowness))
            if failure:
                break
    if failure:
        return Accelerator("tcg", f"KVM does not work here: {failure}")
    return Accelerator("kvm", "a test guest ran under KVM")


@dataclass(frozen=True)
class _Guest:
    """The arguments of QEMU for a test guest, and the file that they name."""

    words: tuple[str, ...]
    file: int


def _find_qemu_ids() -> process.Owner | None:
    """The user and the group of QEMU in a world, with which KVM is tested there."""
    from ktrdr_vm.host.rights import QEMU_USER

    if not in_user_namespace():
        return None
    return pwd.getpwnam(QEMU_USER).pw_uid, Path("/dev/kvm").stat().st_gid


def _time_emulation(words: _Guest) -> float:
    """Seconds in which the same guest boots under emulation; at most EMULATION_LIMIT."""
    began = time.monotonic()
    _boot(words, _EXPECTED, EMULATION_LIMIT, accelerator="tcg", cpu="qemu64")
    return time.monotonic() - began


def _boot(guest: _Guest, expected: int, limit: float, *, accelerator: str = "kvm", cpu: str = "host") -> str:
    """The reason why the guest did not boot, or an empty text."""
    # -M q35 and -cpu host as in real domains; no network, no display, no writable disk.
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
        *guest.words,
    ]
    started = process.start(
        argv, streams=process.Streams(stderr=subprocess.PIPE), pass_fds=[guest.file], owner=_find_qemu_ids()
    )
    assert started.stderr is not None
    end = time.monotonic() + limit
    try:
        while started.poll() is None:
            if time.monotonic() > end:
                return f"{_HUNG} within {limit:.3g} s"
            time.sleep(0.01)
        if started.returncode != expected:
            message = started.stderr.read(2000).decode("utf-8", "replace").strip().splitlines()
            return message[0] if message else f"QEMU ended with exit code {started.returncode}"
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
