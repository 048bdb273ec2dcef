"""Stand-ins for the cloud images that distributions publish, built from Debian's packages, because the published ones
cannot be reached from every place where the tests run.

Each has what differs between published images and decides whether ours boots them: the partition table and the boot
loader, the defaults of cloud-init, who configures the network, how sshd is started, the groups, where Python is, the
labels of SELinux. It shows nothing about the packages of another distribution.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ktrdr_vm.host import process
from ktrdr_vm.images.apt import read_apt_host
from ktrdr_vm.images.bootstrap import make_mmdebstrap_argv, read_packages
from laboratory.lab import LAB_HOME

FOLDER = LAB_HOME / "stock-images"
SUITE = "trixie"
SIZE = 4 << 30
# Where the first partition begins. The boot loader lies in front of it, in a partition of its own.
START = 1 << 20
_SECTOR = 512
# Sectors of the table: its header and its entries, at both ends of the disk, and the old table in front of the first.
_TABLE = 33
_MODULES = ("biosdisk", "part_gpt", "ext2", "linux", "normal", "configfile", "echo")
_GRUB = "usr/lib/grub/i386-pc"
_CONSOLE = "console=tty0 console=ttyS0,115200"
# Of the host; everything else comes from the root that is built.
PROGRAMS = ("mmdebstrap", "unshare", "chroot", "mke2fs", "debugfs", "qemu-img")

# No ifupdown: with it, cloud-init would configure the network through it. Git is added to the images whose publisher
# leaves it out, since a workspace needs it.
PACKAGES = (
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "e2fsprogs",
    "git",
    "grub-pc-bin",
    "init",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "libnss-resolve",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "logrotate",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd-resolved",
    "tzdata",
    "udev",
    "vim-tiny",
    "zstd",
)
_DEBIAN = ("apparmor", "cron", "netplan.io", "systemd-timesyncd", "unattended-upgrades")
_FEDORA = (
    "chrony",
    "network-manager",
    "policycoreutils",
    "polkitd",
    "selinux-policy-default",
    "selinux-utils",
)


@dataclass(frozen=True)
class Flavour:
    """One stand-in. `files` are written into the root, `cloud` is laid over the package's cloud.cfg, and `script` is
    run in the root last."""

    name: str
    stands_for: str
    shows: tuple[str, ...]
    """For the table of docs/images.md."""
    packages: tuple[str, ...]
    label: str
    cloud: dict[str, Any]
    files: dict[str, str]
    script: str
    arguments: str = ""

    @property
    def digest(self) -> str:
        """Of everything that it is made of, but for the versions of the packages."""
        made_of = {**asdict(self), "stands_for": "", "shows": "", "common": (SUITE, SIZE, START, PACKAGES)}
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @property
    def kernel_arguments(self) -> str:
        return " ".join(filter(None, (f"root=LABEL={self.label} ro", _CONSOLE, self.arguments)))


DEBIAN = Flavour(
    "debian",
    "Debian's `genericcloud`",
    ("cloud-init as packaged", "sudo group"),
    (*PACKAGES, *_DEBIAN),
    "cloudimg-root",
    {},
    {},
    "",
)
UBUNTU = Flavour(
    "ubuntu",
    "Ubuntu 24.04 `server-cloudimg`",
    (
        "netplan",
        "sshd started by `ssh.socket`",
        "`60-cloudimg-settings.conf`",
        "default user `ubuntu`",
        "`preserve_hostname: false`",
        "stub of systemd-resolved",
        "root by the label `cloudimg-rootfs`",
    ),
    (*PACKAGES, *_DEBIAN),
    "cloudimg-rootfs",
    {
        "disable_root": True,
        "preserve_hostname": False,
        "users": ["default"],
        "system_info": {
            "distro": "ubuntu",
            "default_user": {
                "name": "ubuntu",
                "lock_passwd": True,
                "gecos": "Ubuntu",
                "groups": ["adm", "cdrom", "dip", "lxd", "sudo"],
                "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
                "shell": "/bin/bash",
            },
            "network": {
                "dhcp_client_priority": ["dhcpcd", "dhclient", "udhcpc"],
                "renderers": ["netplan", "eni", "sysconfig"],
                "activators": ["netplan", "eni", "network-manager", "networkd"],
            },
            "ntp_client": "auto",
            "paths": {"cloud_dir": "/var/lib/cloud/", "templates_dir": "/etc/cloud/templates/"},
            "ssh_svcname": "ssh",
        },
    },
    {
        "etc/os-release": (
            'PRETTY_NAME="Stand-in for Ubuntu 24.04"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n'
            "ID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n"
        ),
        "etc/ssh/sshd_config.d/60-cloudimg-settings.conf": "PasswordAuthentication no\n",
    },
    # Ubuntu's package enables the socket in place of the service.
    "systemctl disable ssh.service\nsystemctl enable ssh.socket\n",
)
FEDORA = Flavour(
    "fedora",
    "Fedora's `Cloud-Base-Generic`",
    (
        "NetworkManager as the only renderer",
        "no group `sudo`, but `wheel`",
        "default user `fedora`",
        "chrony",
        "`sshd` as the name of the service",
        "bash as `/bin/sh`",
        "no `python3`, but `/usr/libexec/platform-python`, as in RHEL 8",
        "SELinux with labels, permissive, with Debian's policy",
    ),
    (*PACKAGES, *_FEDORA),
    "fedora",
    {
        "disable_root": True,
        "preserve_hostname": False,
        "ssh_pwauth": False,
        "users": ["default"],
        "mount_default_fields": [None, None, "auto", "defaults,nofail,x-systemd.requires=cloud-init.service", "0", "2"],
        "system_info": {
            "distro": "fedora",
            "default_user": {
                "name": "fedora",
                "lock_passwd": True,
                "gecos": "fedora Cloud User",
                "groups": ["wheel", "adm", "systemd-journal"],
                "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
                "shell": "/bin/bash",
            },
            "network": {"renderers": ["network-manager"], "activators": ["network-manager"]},
            "ntp_client": "chrony",
            "paths": {"cloud_dir": "/var/lib/cloud/", "templates_dir": "/etc/cloud/templates/"},
            "ssh_svcname": "sshd",
        },
    },
    {
        "etc/os-release": (
            'PRETTY_NAME="Stand-in for Fedora"\nNAME="Fedora Linux"\nVERSION_ID=41\nID=fedora\n'
            'PLATFORM_ID="platform:f41"\nCPE_NAME="cpe:/o:fedoraproject:fedora:41"\n'
        ),
        "etc/sudoers": (
            "Defaults env_reset\nDefaults secure_path = /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
            "root ALL=(ALL) ALL\n%wheel ALL=(ALL) ALL\n@includedir /etc/sudoers.d\n"
        ),
        "etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=default\n",
        "etc/NetworkManager/conf.d/plugins.conf": "[main]\nplugins=keyfile\n",
    },
    r"""groupdel sudo
# systemd would create it again at boot.
sed -i 's/^g sudo/# sudo/' /usr/lib/sysusers.d/basic.conf
groupadd --system wheel
systemctl disable systemd-networkd.service systemd-networkd.socket 2>/dev/null || :
systemctl enable NetworkManager.service chrony.service
ln -sfT bash /usr/bin/sh
mkdir -p /usr/libexec
mv "$(readlink -f /usr/bin/python3)" /usr/libexec/platform-python
rm -f /usr/bin/python3 /usr/bin/python3.*
ln -s ../lib/cloud-init /usr/libexec/cloud-init
# As cloud-init's units are on Fedora: after D-Bus, over which it sets the hostname, and after NetworkManager.
cd /usr/lib/systemd/system
sed -i '/^Before=sysinit.target$/d; /^After=networking.service$/d' cloud-init-{main,local,network}.service
sed -i '/^DefaultDependencies=no$/d' cloud-init-{main,local,network}.service
sed -i '/^After=cloud-init-local.service$/a After=NetworkManager.service NetworkManager-wait-online.service' \
  cloud-init-network.service
cd /
grep -rlIE '^#! ?/usr/bin/(env )?python3' /usr/bin /usr/sbin /usr/lib/cloud-init |
  xargs -r sed -i -E '1s|^#! ?/usr/bin/(env )?python3|#!/usr/libexec/platform-python|'
# Last: the files above get their labels too. There is no SELinux here that would check them.
setfiles -F -e /proc -e /sys -e /dev /etc/selinux/default/contexts/files/file_contexts /
""",
    arguments="security=selinux selinux=1",
)
# Of what was tried, for the table of docs/images.md: versions that explain a difference.
TOLD = ("linux-image-cloud-amd64", "systemd", "cloud-init", "openssh-server")
TRIED = Path(__file__).parents[1] / "stock-images.json"
FLAVOURS = {flavour.name: flavour for flavour in (DEBIAN, UBUNTU, FEDORA)}


@dataclass(frozen=True)
class StockImage:
    """A stand-in on the disk. `packages` are names and versions."""

    flavour: Flavour
    disk: Path
    sha256: str
    packages: dict[str, str]


def find_stock(flavour: Flavour) -> StockImage | None:
    place = FOLDER / flavour.digest
    try:
        known = json.loads((place / "image.json").read_text())
    except FileNotFoundError:
        return None
    return StockImage(flavour, place / "disk.qcow2", known["sha256"], known["packages"])


def find_or_build_stock(flavour: Flavour) -> StockImage:
    """Outside of the lab's namespaces, which have no mirror. Those of other contents are removed."""
    if (found := find_stock(flavour)) is not None:
        return found
    for program in PROGRAMS:
        process.require_program(program)
    FOLDER.mkdir(mode=0o711, parents=True, exist_ok=True)
    with (FOLDER.parent / "stock-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return find_stock(flavour) or _build_stock(flavour)


def _build_stock(flavour: Flavour) -> StockImage:
    wanted = {one.digest for one in FLAVOURS.values()}
    for place in FOLDER.iterdir():
        if place.name not in wanted:
            shutil.rmtree(place)
    partial = FOLDER / ".new"
    partial.mkdir(mode=0o711)
    print(f"a stand-in for {flavour.stands_for} is built", flush=True)
    try:
        packages = build_disk(flavour, partial)
        (partial / "tree.raw").unlink()
        with (partial / "disk.qcow2").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        (partial / "image.json").write_text(json.dumps({"sha256": sha256, "packages": packages}))
        for file_name in ("disk.qcow2", "image.json"):
            (partial / file_name).chmod(0o444)
        partial.rename(FOLDER / flavour.digest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    built = find_stock(flavour)
    assert built is not None
    return built


def read_tried() -> dict[str, dict[str, Any]]:
    """For each flavour: the digests of its content and of the disk that was booted, and versions of packages."""
    tried: dict[str, dict[str, Any]] = json.loads(TRIED.read_text()) if TRIED.exists() else {}
    return tried


def write_tried(image: StockImage) -> None:
    packages = {name: image.packages[name] for name in TOLD}
    entry = {"content": image.flavour.digest, "disk": image.sha256, "packages": packages}
    tried = {**read_tried(), image.flavour.name: entry}
    TRIED.write_text(json.dumps(tried, indent=2, sort_keys=True) + "\n")


def build_disk(flavour: Flavour, folder: Path) -> dict[str, str]:
    """`tree.raw`, an ext4 file system, and `disk.qcow2`, which boots by itself, in `folder`. The packages that they
    have."""
    root, tree = folder / "root", folder / "tree.raw"
    argv = make_mmdebstrap_argv(
        read_apt_host(), SUITE, root, variant="minbase", security=True, packages=flavour.packages, exclude=()
    )
    run(argv, env={**os.environ, "TMPDIR": str(folder)})
    packages = read_packages(root)
    _finish_root(flavour, root)
    with tree.open("xb") as file:
        file.truncate(SIZE)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", flavour.label, "-d", root, tree])
    make_bootable(tree, folder / "disk.qcow2", flavour.kernel_arguments, tools=root)
    shutil.rmtree(root)
    return packages


def _finish_root(flavour: Flavour, root: Path) -> None:
    (root / "etc/fstab").write_text(f"LABEL={flavour.label} / ext4 defaults 0 1\n")
    (root / "etc/hostname").write_text("stock\n")
    (root / "etc/machine-id").write_text("uninitialized\n")
    for pattern in (
        "etc/ssh/ssh_host_*",
        "var/cache/apt/archives/*.deb",
        "var/lib/apt/lists/*_*",
        "etc/apt/apt.conf.d/99mmdebstrap",
    ):
        for place in root.glob(pattern):
            place.unlink()
    resolv = root / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for kind, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        os.link(next((root / "boot").glob(pattern)), root / "boot" / kind)
    if flavour.cloud:
        config = root / "etc/cloud/cloud.cfg"
        merged = {**yaml.safe_load(config.read_text()), **flavour.cloud}
        config.write_text(yaml.safe_dump(merged, sort_keys=False))
    for name, text in flavour.files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = place.stat().st_mode & 0o777 if place.exists() else 0o644
        # Some are links to files of packages.
        place.unlink(missing_ok=True)
        place.write_text(text)
        place.chmod(mode)
    if flavour.script:
        run(["chroot", root, "/bin/bash", "-euc", flavour.script])


def make_bootable(
    tree: Path, disk: Path, arguments: str, *, tools: Path, edit_raw: Callable[[Path], None] | None = None
) -> None:
    """A qcow2 disk with the tree as its first partition and GRUB for BIOS in front of it, which starts /boot/kernel.

    `tools` is a root with grub-mkimage and the modules of GRUB. `edit_raw` is called with the path of the partition as
    debugfs takes it.
    """
    raw = disk.with_suffix(".raw-disk")
    sectors = (START + tree.stat().st_size + (1 << 20)) // _SECTOR
    with raw.open("xb") as file:
        file.truncate(sectors * _SECTOR)
    run(["dd", f"if={tree}", f"of={raw}", "bs=1M", f"seek={START >> 20}", "conv=sparse,notrunc", "status=none"])
    config = tools / "tmp/grub.cfg"
    config.write_text(f"set root=(hd0,gpt1)\nlinux /boot/kernel {arguments}\ninitrd /boot/initrd\nboot\n")
    words = ["-O", "i386-pc", "-d", f"/{_GRUB}", "-c", "/tmp/grub.cfg", "-p", "/", "-o", "/tmp/core", *_MODULES]
    run(["chroot", tools, "grub-mkimage", *words])
    first, core = bytearray((tools / _GRUB / "boot.img").read_bytes()), bytearray((tools / "tmp/core").read_bytes())
    begin = 1 + _TABLE
    assert (begin * _SECTOR) + len(core) <= START
    # As grub-install does: where the first sector finds the second one, and that one the rest.
    struct.pack_into("<Q", first, 0x5C, begin)
    struct.pack_into("<Q", core, 0x1F4, begin + 1)
    head, tail = make_partition_table(sectors, tree.stat().st_size // _SECTOR)
    with raw.open("r+b") as file:
        file.write(first[:440] + head[440:])
        file.write(core)
        file.seek(-len(tail), os.SEEK_END)
        file.write(tail)
    if edit_raw is not None:
        edit_raw(Path(f"{raw}?offset={START}"))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    raw.unlink()


def make_partition_table(sectors: int, size: int) -> tuple[bytes, bytes]:
    """A GPT as published images have it: the first sectors of a disk and its last ones. The root is the partition 1,
    of `size` sectors, and the boot loader has the partition 14 in front of it."""
    linux, boot = "0fc63daf-8483-4772-8e79-3d69d8477de4", "21686148-6449-6e6f-744e-656564454649"
    start = START // _SECTOR
    entries = bytearray(128 * 128)
    for number, kind, first, last in ((1, linux, start, start + size - 1), (14, boot, 1 + _TABLE, start - 1)):
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"stock-{number}")
        packed = struct.pack("<16s16sQQQ", uuid.UUID(kind).bytes_le, identity.bytes_le, first, last, 0)
        entries[128 * (number - 1) : 128 * (number - 1) + len(packed)] = packed

    def make_header(here: int, other: int, table: int) -> bytes:
        disk, checksum = uuid.uuid5(uuid.NAMESPACE_OID, "stock").bytes_le, zlib.crc32(entries)
        usable = (1 + _TABLE, sectors - _TABLE - 1)
        rest = struct.pack("<QQQQ16sQIII", here, other, *usable, disk, table, 128, 128, checksum)
        start_of_header = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
        own = zlib.crc32(start_of_header + bytes(8) + rest)
        return (start_of_header + struct.pack("<II", own, 0) + rest).ljust(_SECTOR, b"\0")

    old = bytearray(_SECTOR)
    struct.pack_into("<B3sB3sII", old, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    old[510:] = b"\x55\xaa"
    return (
        bytes(old) + make_header(1, sectors - 1, 2) + bytes(entries),
        bytes(entries) + make_header(sectors - 1, 1, sectors - _TABLE),
    )


def edit(tree: Path, commands: list[str]) -> None:
    """debugfs ends well whatever happens, so what it says is read."""
    said = subprocess.run(
        ["debugfs", "-w", "-f", "-", tree], input="\n".join(commands), text=True, capture_output=True, check=True
    )
    wrong = [line for line in said.stderr.splitlines() if line and not line.startswith("debugfs ")]
    if wrong:
        raise RuntimeError(f"debugfs: {'; '.join(wrong)}")


def run(argv: Sequence[object], *, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, text=True, capture_output=True, env=env, cwd="/"
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv[:3]))}: {done.stderr.strip()[-500:]}")
    return done.stdout
