"""Makes the disk of a box: a Debian root from packages, what makes a host of it, the virtual environment, and the built
image.

All of it happens in namespaces of its own. The root has a /dev of its own as well: a `chgrp kvm /dev/kvm` in it, with
its own number for that group, would make the libvirt outside probe QEMU anew at each call.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.apt import read_apt_host
from ktrdr_vm.images.bootstrap import CONTAINED, make_mmdebstrap_argv
from ktrdr_vm.images.store import ImageStore

from .release import DORMANT, ENVIRONMENT, Release

CLONE = "/root/ktrdr-vm"
DISK_SIZE = 24 << 30
PERSON = "alice"
_NETWORK = """\
[Match]
Name=en* eth*
[Network]
DHCP=ipv4
[DHCPv4]
UseDNS=no
UseRoutes=no
"""
_INTERNET = """\
[Unit]
Description=The internet of this box
Before=libvirtd.service
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/internet.py
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


def say(text: str) -> None:
    print(f"hosts: {text}", file=sys.stderr, flush=True)


def find_or_build(release: Release) -> Path:
    """The folder with disk.raw, vmlinuz, initrd.img and the key `id`; made when it is not there, in about three
    minutes."""
    place = release.directory
    place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with (place.parent / f".lock-{release.codename}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            _build(release, place)
    return place


def _build(release: Release, place: Path) -> None:
    began = time.monotonic()
    for old in place.parent.glob(f"{release.codename}-*"):
        shutil.rmtree(old)
    place.mkdir()
    # Its owner's alone, as the key is.
    place.chmod(0o700)
    say(f"builds a host of Debian {release.version} in {place}")
    root = place / "root"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "id"], check=True, timeout=60)
    _timed("packages", lambda: _install(release, root, place))
    _timed("configuration", lambda: _configure(root, (place / "id.pub").read_text(), place))
    _timed("virtual environment", lambda: _make_environment(root))
    _timed("image", lambda: _copy_image(root))
    _timed("disk", lambda: _make_disk(root, place))
    shutil.rmtree(root)
    (place / "done").touch()
    say(f"built in {time.monotonic() - began:.0f} s")


def _timed(what: str, act: Callable[[], None]) -> None:
    began = time.monotonic()
    act()
    say(f"  {what}: {time.monotonic() - began:.0f} s")


def _install(release: Release, root: Path, scratch: Path) -> None:
    argv = make_mmdebstrap_argv(
        read_apt_host(), release.codename, root, variant="apt", security=True, packages=release.packages, exclude=()
    )
    log = scratch / "packages.log"
    with log.open("wb") as file:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            timeout=3600,
            check=False,
            env=_environment() | {"TMPDIR": str(scratch)},
        )
    if done.returncode:
        raise RuntimeError(f"mmdebstrap failed: {log.read_text(errors='replace')[-2000:]}")


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
    }


def _configure(root: Path, public_key: str, place: Path) -> None:
    """What the installer asks for, an uplink, and a person without rights. Folders of people are open to nobody
    else."""
    for folder in ("root/.ssh", "etc/systemd/network", "usr/local/lib"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_text(public_key)
    (root / "etc/systemd/network/uplink.network").write_text(_NETWORK)
    (root / "etc/systemd/system/internet.service").write_text(_INTERNET)
    shutil.copyfile(Path(__file__).with_name("internet.py"), root / "usr/local/lib/internet.py")
    (root / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro,discard 0 1\n")
    (root / "etc/hostname").write_text("box\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 box\n")
    resolv = root / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.write_text("nameserver 198.51.100.53\n")
    script = f"""set -e
systemctl enable -q systemd-networkd.service internet.service ssh.service libvirtd.socket virtlogd.socket
systemctl disable -q {" ".join(DORMANT)} 2>/dev/null || true
systemctl mask -q systemd-networkd-wait-online.service
useradd --create-home --shell /bin/bash {PERSON}
chmod 700 /root /root/.ssh /home/{PERSON}
"""
    run_inside(root, script, place / "configuration.log")
    # A package that wants its resolver linked there has done so; the one of this box is a file.
    if resolv.is_symlink():
        resolv.unlink()
        resolv.write_text("nameserver 198.51.100.53\n")


def run_inside(
    root: Path, script: str, log: Path, *, binds: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> None:
    """A script in the root, in mount and PID namespaces that end with it."""
    nodes = "; ".join(
        f"mknod -m 666 {root}/dev/{name} c {number}"
        for name, number in (("null", "1 3"), ("zero", "1 5"), ("random", "1 8"), ("urandom", "1 9"))
    )
    mounts = [
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount -t tmpfs tmpfs {root}/tmp",
        f"mount -t tmpfs tmpfs {root}/dev",
        nodes,
        *(f"mkdir -p {root}{path} && mount --bind {path} {root}{path}" if Path(path).is_dir()
          else f"mkdir -p {root}{Path(path).parent} && touch {root}{path} && mount --bind {path} {root}{path}" for path in binds),
        f"exec chroot {root} sh -c \"$SCRIPT\"",
    ]  # fmt: skip
    with log.open("wb") as file:
        done = subprocess.run(
            [*CONTAINED, "sh", "-c", " && ".join(mounts)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=3600, check=False,
            env=_environment() | (environment or {}) | {"SCRIPT": script},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the script in the root failed: {log.read_text(errors='replace')[-3000:]}")


def _make_environment(root: Path) -> None:
    """By scripts/environment itself, with what pip is configured for on this machine; in the box that would take a
    quarter of an hour."""
    clone = root / CLONE.lstrip("/")
    for folder in ("ktrdr_vm", "scripts"):
        (clone / folder).mkdir(parents=True)
    (clone / "ktrdr_vm/__init__.py").touch()
    for name in ENVIRONMENT:
        shutil.copy(PROJECT / name, clone / name)
    settings, binds = _read_pip()
    script = f"cd {CLONE} && scripts/environment --complete"
    run_inside(
        root,
        script,
        root.with_name("environment.log"),
        binds=("/etc/resolv.conf", "/etc/hosts", *binds),
        environment=settings,
    )
    for path in binds:
        # What was only bound is empty now.
        if (left := root / path.lstrip("/")).is_dir() and not any(left.iterdir()):
            left.rmdir()


def _read_pip() -> tuple[dict[str, str], tuple[str, ...]]:
    """This machine's own configuration of pip as variables, and the files and folders on it that it names."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings["PIP_" + key.rpartition(".")[2].upper().replace("-", "_")] = value.strip("'\"").replace("\\n", " ")
    words = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    paths = {word for word in words if word.startswith("/") and Path(word).exists()}
    # The folder of an index's packages may lie beside it.
    paths |= {str(Path(word).parent) for word in paths if word.endswith("/simple")}
    return settings, tuple(sorted(path for path in paths if not any(path.startswith(f"{other}/") for other in paths)))


def _copy_image(root: Path) -> None:
    """The shipped image, built outside: building one in the box is a test of packages and mirrors."""
    sys.path.insert(0, str(PROJECT / "tests" / "lab"))
    from laboratory.instances import find_or_build_image
    from laboratory.lab import LAB_IMAGES

    image = find_or_build_image()
    assert image is not None and ImageStore(LAB_IMAGES)
    images = root / "var/lib/ktrdr-vm/images"
    images.mkdir(parents=True)
    images.chmod(0o711)
    images.parent.chmod(0o711)
    for folder in LAB_IMAGES.glob(f"{image.digest}*"):
        subprocess.run(["cp", "-a", "--sparse=always", folder, images], check=True, timeout=600)


def _make_disk(root: Path, place: Path) -> None:
    for name, target in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        [found] = (root / "boot").glob(name)
        shutil.copyfile(found, place / target)
    disk = place / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, disk], check=True, timeout=1200)
    os.chmod(disk, 0o600)
