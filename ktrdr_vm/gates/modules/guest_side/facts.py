# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH112, PTH123, UP017
"""Facts of the guest, with the names and types of Ansible."""

import datetime
import os
import platform
import pwd
import shutil
import socket
import sys
import time

# How distributions are called by Ansible, and their families.
NAMES = {
    "debian": ("Debian", "Debian"),
    "ubuntu": ("Ubuntu", "Debian"),
    "fedora": ("Fedora", "RedHat"),
    "rhel": ("RedHat", "RedHat"),
    "centos": ("CentOS", "RedHat"),
    "rocky": ("Rocky", "RedHat"),
    "almalinux": ("AlmaLinux", "RedHat"),
    "alpine": ("Alpine", "Alpine"),
    "arch": ("Archlinux", "Archlinux"),
    "opensuse-leap": ("openSUSE Leap", "Suse"),
    "amzn": ("Amazon", "RedHat"),
}
MANAGERS = (("apt-get", "apt"), ("dnf", "dnf"), ("apk", "apk"), ("pacman", "pacman"), ("zypper", "zypper"))


def run(_arguments):
    return {
        "changed": False,
        "ansible_facts": {**system(), **distribution(), **hardware(), **user(), **network(), "date_time": date_time()},
    }


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def system():
    info = sys.version_info
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "architecture": platform.machine(),
        "hostname": platform.node().split(".")[0],
        "nodename": platform.node(),
        "python_version": platform.python_version(),
        "python": {
            "version": {
                "major": info[0],
                "minor": info[1],
                "micro": info[2],
                "releaselevel": info[3],
                "serial": info[4],
            },
            "version_info": list(info),
            "executable": sys.executable,
            "has_sslcontext": True,
            "type": sys.implementation.name,
        },
        "env": dict(os.environ),
        "pkg_mgr": next((name for program, name in MANAGERS if shutil.which(program)), "unknown"),
        "service_mgr": service_manager(),
    }


def service_manager():
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    first = read("/proc/1/comm").strip()
    return first if first and first != "init" and not first.endswith("sh") else "service"


def distribution():
    rows = [line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line]
    found = {key: value.strip().strip("\"'") for key, value in rows}
    other = (found.get("NAME", "").split(" ")[0] or "Linux", found.get("ID_LIKE", "").split(" ")[0].capitalize())
    name, family = NAMES.get(found.get("ID", ""), other)
    version = found.get("VERSION_ID", "NA")
    if name == "Debian":
        exact = read("/etc/debian_version").strip()
        version = exact if exact.split(".")[0] == version else version
    return {
        "distribution": name, "os_family": family or name, "distribution_version": version,
        "distribution_major_version": version.split(".")[0],
        "distribution_release": found.get("VERSION_CODENAME") or "NA",
    }  # fmt: skip


def hardware():
    memory = {
        line.split(":")[0]: int(line.split()[1]) // 1024
        for line in read("/proc/meminfo").splitlines()
        if line.endswith("kB")
    }
    rows = [line.split(":", 1) for line in read("/proc/cpuinfo").splitlines() if ":" in line]
    sockets, cores, threads = set(), {}, 0
    socket_now = "0"
    for key, value in ((key.strip(), value.strip()) for key, value in rows):
        if key == "processor":
            threads += 1
        elif key == "physical id":
            socket_now = value
            sockets.add(value)
        elif key == "cpu cores":
            cores[socket_now] = int(value)
    count = len(sockets) or threads or os.cpu_count() or 1
    return {
        "memtotal_mb": memory.get("MemTotal", 0),
        "memfree_mb": memory.get("MemFree", 0),
        "swaptotal_mb": memory.get("SwapTotal", 0),
        "processor_count": count,
        "processor_cores": next(iter(cores.values()), 1),
        "processor_vcpus": threads or os.cpu_count() or 1,
        "uptime_seconds": int(float((read("/proc/uptime").split() or ["0"])[0])),
    }


def user():
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return {
            "user_uid": uid,
            "user_gid": os.getgid(),
            "user_id": str(uid),
            "user_dir": "",
            "user_shell": "",
            "user_gecos": "",
        }
    return {
        "user_id": entry.pw_name, "user_uid": entry.pw_uid, "user_gid": entry.pw_gid, "user_dir": entry.pw_dir,
        "user_shell": entry.pw_shell, "user_gecos": entry.pw_gecos,
    }  # fmt: skip


def network():
    """The interface and the address from which packets without a closer route are sent."""
    routes = [line.split() for line in read("/proc/net/route").splitlines()[1:]]
    default = next((row for row in routes if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000"), None)
    if default is None:
        return {"default_ipv4": {}}
    gateway = socket.inet_ntoa(bytes.fromhex(default[2])[::-1])
    found = {"interface": default[0], "gateway": gateway}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            found["address"] = probe.getsockname()[0]
        except OSError:
            found["address"] = ""
    return {"default_ipv4": found}


def date_time():
    stamp = time.time()
    now, utc = datetime.datetime.fromtimestamp(stamp), datetime.datetime.fromtimestamp(stamp, datetime.timezone.utc)
    show = now.strftime
    return {
        "year": show("%Y"),
        "month": show("%m"),
        "weekday": show("%A"),
        "weekday_number": show("%w"),
        "weeknumber": show("%W"),
        "day": show("%d"),
        "hour": show("%H"),
        "minute": show("%M"),
        "second": show("%S"),
        "epoch": str(int(stamp)),
        "epoch_int": str(int(stamp)),
        "date": show("%Y-%m-%d"),
        "time": show("%H:%M:%S"),
        "iso8601_micro": utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "iso8601": utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iso8601_basic": show("%Y%m%dT%H%M%S%f"),
        "iso8601_basic_short": show("%Y%m%dT%H%M%S"),
        "tz": time.strftime("%Z"),
        "tz_dst": time.tzname[1],
        "tz_offset": time.strftime("%z"),
    }
