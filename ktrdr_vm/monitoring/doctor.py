"""Checks of the requirements of a run, each with the command that meets it. Changes nothing."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.host.accelerator import find_accelerator
from ktrdr_vm.host.capacity import read_available_memory
from ktrdr_vm.host.confinement import find_fork_obstacle, is_confined
from ktrdr_vm.host.foreign_rules import describe_obstacles, find_obstacles, join_fixes
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.nft import list_ruleset
from ktrdr_vm.host.outbound import ADVICE, find_obstacle
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.virtiofsd import find_virtiofsd
from ktrdr_vm.identity import HOST_USERS
from ktrdr_vm.instance.allocation import find_users
from ktrdr_vm.instance.orphans import find_orphans
from ktrdr_vm.monitoring.check import Check
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.users import in_user_namespace

LEGACY_TABLES = Path("/proc/net/ip_tables_names")
_FREE_DISK = 8 << 30
_FREE_MEMORY = 3072


def check_packages() -> list[Check]:
    """What must be installed. Needs neither root nor a world, which cannot be made without it."""
    return [*_programs(), _virtiofsd(), _binding()]


def check_host(home: Home) -> list[Check]:
    """All other checks, in the order in which a run needs them: as root, or as the root of a world."""
    checks = [_root(), _libvirt(), _accelerator(), _tun(), _apparmor(), _policy()]
    checks += [_firewall(), _legacy_firewall(), _outbound(), *_orphans(home)]
    checks += [_disk(home), _memory()]
    return [check for check in checks if check is not None]


def _root() -> Check:
    if in_user_namespace():
        return Check("root", "ok", "runs without root, in a world of this user")
    return Check("root", "ok", "runs as root")


def _programs() -> list[Check]:
    """The packages that every host needs."""
    found = []
    for line in Path(__file__).parents[1].joinpath("host", "packages.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        package, probes, purpose = line.split(maxsplit=2)
        for probe in probes.split(","):
            path = Path(probe) if probe.startswith("/") else process.find_program(probe)
            if path is not None and path.exists():
                found.append(Check(package, "ok", f"{path}: {purpose}"))
                break
        else:
            found.append(
                Check(package, "missing", f"not installed; required for {purpose}", f"apt-get install {package}")
            )
    return found


def _virtiofsd() -> Check:
    if path := find_virtiofsd():
        return Check("virtiofsd", "ok", str(path))
    return Check("virtiofsd", "warning", "not installed; profiles with mounts cannot run", "apt-get install virtiofsd")


def _binding() -> Check:
    if importlib.util.find_spec("libvirt") is not None:
        return Check("libvirt-python", "ok", "the Python binding of libvirt")
    return Check(
        "libvirt-python",
        "missing",
        f"not installed in {sys.prefix}; required for every command that uses an instance",
        "install gcc, pkg-config, python3-dev and libvirt-dev, then `pip install 'ktrdr-vm[host]'`; in a clone, `make"
        " setup`",
    )


def _libvirt() -> Check:
    try:
        version = Libvirt().connect().getLibVersion()
    except KtrdrError as error:
        return Check("libvirtd", "missing", error.message, error.hint)
    return Check("libvirtd", "ok", f"version {version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}")


def _accelerator() -> Check:
    verdict = find_accelerator()
    if verdict.name == "kvm":
        return Check("kvm", "ok", verdict.reason)
    return Check(
        "kvm",
        "warning",
        f"software emulation (TCG): {verdict.reason}",
        "enable hardware virtualisation; without it everything works, but slower",
    )


def _tun() -> Check:
    if Path("/dev/net/tun").exists():
        return Check("tun", "ok", "/dev/net/tun")
    return Check("tun", "missing", "/dev/net/tun does not exist", "modprobe tun")


def _apparmor() -> Check | None:
    """Check whether each instance can have an AppArmor profile for its QEMU."""
    try:
        libvirt = Libvirt()
        if not is_confined(libvirt):
            return None
        obstacle = find_fork_obstacle(libvirt)
    except KtrdrError:
        return None  # a separate check reports errors of libvirtd
    if obstacle:
        fix = "reinstall libvirt-daemon-system; until then every `apply` boots without a template"
        return Check("apparmor", "warning", f"{obstacle}; instances boot without a template", fix)
    return Check(
        "apparmor", "ok", "each QEMU process has its own profile, which allows the memory file of its template only"
    )


def _policy() -> Check:
    try:
        read_policy()
    except KtrdrError as error:
        return Check("policy", "missing", str(error), error.hint)
    return Check("policy", "ok", "the owner's policy can be read, or does not exist and the default applies")


def _firewall() -> Check | None:
    """Check rules of other programs, such as firewalld, ufw and Docker."""
    if process.find_program("nft") is None:
        return None
    try:
        obstacles = find_obstacles(list_ruleset(), find_users())
    except KtrdrError as error:
        return Check("firewall", "missing", error.message, error.hint)
    if not obstacles:
        return Check("firewall", "ok", "no rules of other programs drop connections of guards")
    return Check("firewall", "missing", describe_obstacles(obstacles), join_fixes(obstacles))


def _legacy_firewall() -> Check | None:
    """Check legacy iptables, which nft does not list."""
    # Those of a world are its own, and empty.
    if process.find_program("iptables-legacy-save") is None or not LEGACY_TABLES.exists() or in_user_namespace():
        return None
    saved = (
        process.run(["iptables-legacy-save", "-t", "filter"], timeout=30, check=False).text
        if LEGACY_TABLES.read_text().strip()
        else ""
    )
    if ":OUTPUT DROP" not in saved:
        return None
    return Check(
        "legacy firewall",
        "warning",
        "iptables-legacy drops by default in OUTPUT and may drop connections of guards",
        f"iptables-legacy -I OUTPUT -m owner --uid-owner {HOST_USERS.first}-{HOST_USERS.last} -j ACCEPT, or move those"
        " rules to nftables",
    )


def _outbound() -> Check:
    """Check whether the guard, which uses no proxy, can reach the outside. Nothing is connected to."""
    if obstacle := find_obstacle():
        return Check("outbound", "warning", obstacle, ADVICE)
    return Check("outbound", "ok", "a default route, and no proxy is configured; the guard connects directly")


def _orphans(home: Home) -> list[Check]:
    try:
        found = find_orphans(home, Libvirt())
    except KtrdrError as error:
        return [Check("residue", "warning", f"the search failed: {error.message}", error.hint)]
    if not found:
        return [Check("residue", "ok", "no orphans: no resource is left without its instance")]
    return [Check("residue", "warning", what, fix) for what, fix in found]


def _disk(home: Home) -> Check:
    place = home.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _FREE_DISK:
        return Check(
            "disk",
            "warning",
            f"{free >> 30} GiB free at {place}",
            "run `ktrdr-vm gc`, or move $KTRDR_VM_HOME to a larger disk",
        )
    return Check("disk", "ok", f"{free >> 30} GiB free at {place}")


def _memory() -> Check:
    free = read_available_memory()
    if free < _FREE_MEMORY:
        return Check(
            "memory",
            "warning",
            f"{free} MiB available",
            "stop other programs; an instance needs the memory that its profile specifies",
        )
    return Check("memory", "ok", f"{free} MiB available")
