"""What a guest stands on, and a profile may therefore not replace: system folders, the identity's variables, memory to boot with."""

from __future__ import annotations

from pathlib import PurePosixPath

# Set by the program itself, always.
IDENTITY_VARIABLES = frozenset({"KTRDR_INSTANCE_ID", "COMPOSE_PROJECT_NAME", "OTEL_RESOURCE_ATTRIBUTES"})
# MiB with which a current Debian or Ubuntu cloud kernel, its initrd and systemd come up.
LEAST_MEMORY = 256

_SYSTEM = tuple(
    PurePosixPath(path)
    for path in (
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run",
        "/var/lib/docker", "/var/lib/containerd", "/var/lib/cloud", "/var/lib/dpkg", "/var/lib/systemd",
    )
)  # fmt: skip
_LOCAL = PurePosixPath("/usr/local")


def refuse_target(target: str) -> str:
    """Why nothing may be put at this absolute path of the guest, or nothing."""
    path = PurePosixPath(target)
    if ".ssh" in path.parts:
        return "the way in is there"
    if path.is_relative_to(_LOCAL) and path != _LOCAL:
        return ""
    for system in _SYSTEM:
        if path.is_relative_to(system) or system.is_relative_to(path):
            return f"the guest lives on {system}"
    return ""


def refuse_variable(name: str) -> str:
    """Why a profile may not set this variable for every process, or nothing."""
    if name in IDENTITY_VARIABLES:
        return "it is the identity of the instance, and set by the program"
    if name == "PATH":
        return "it would replace the guest's own, and no program would be found; set it in the command that needs it"
    return ""
