"""Requirements of the guest that a profile may not replace: system folders, variables of the identity, minimal
memory."""

from __future__ import annotations

from pathlib import PurePosixPath

# Always set by ktrdr-vm.
IDENTITY_VARIABLES = frozenset({"KTRDR_INSTANCE_ID", "COMPOSE_PROJECT_NAME", "OTEL_RESOURCE_ATTRIBUTES"})
# Git of the guest finds the workspace without them, and another one, or none, with them.
_GIT = frozenset(
    "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES"
    " GIT_NAMESPACE GIT_SHALLOW_FILE".split()
)
# A shell sets them itself, or does not take them from its environment.
_SHELL = frozenset("_ IFS PWD OLDPWD SHLVL SHELLOPTS BASHOPTS PPID".split())
# MiB with which a current Debian or Ubuntu cloud kernel, its initrd and systemd boot.
LEAST_MEMORY = 256

_SYSTEM = tuple(
    PurePosixPath(path)
    for path in (
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/proc",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/var/run",
        "/var/lib/docker",
        "/var/lib/containerd",
        "/var/lib/cloud",
        "/var/lib/dpkg",
        "/var/lib/systemd",
    )
)
_LOCAL = PurePosixPath("/usr/local")
_HOMES = PurePosixPath("/home")
# These are required themselves, and not all that is beneath them.
_ITSELF = frozenset(map(PurePosixPath, ("/home", "/root", "/tmp", "/var/tmp")))


def refuse_target(target: str, *, hides: bool = False) -> str:
    """The reason why this absolute path of the guest may not be used, or an empty text. `hides` says that nothing of
    what is there can be seen any more."""
    path = PurePosixPath(target)
    if ".ssh" in path.parts or (hides and path.parent == _HOMES):
        return "it contains the login of ktrdr-vm"
    if path.is_relative_to(_LOCAL) and path != _LOCAL:
        return ""
    if path in _ITSELF:
        return f"the guest system requires {path}; use a folder in it"
    for system in _SYSTEM:
        if path.is_relative_to(system) or system.is_relative_to(path):
            return f"the guest system requires {system}"
    return ""


def refuse_variable(name: str) -> str:
    """The reason why a profile may not set this variable for every process, or an empty text."""
    if name in IDENTITY_VARIABLES:
        return "it is part of the instance's identity and set by ktrdr-vm"
    if name == "PATH":
        return (
            "it would replace the value of the guest, so that programs are not found; set it in the command that"
            " needs it"
        )
    if name in _GIT:
        return "Git of the guest would not find the workspace, so that no commit comes back; set it in the command"
    return "a shell of the guest replaces it, so that it has no effect" if name in _SHELL else ""
