"""The users of this host as this process sees them: their names and home directories, who may change a path, and
whether it is in a user namespace."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ktrdr_vm.errors import HostError

# The kernel's overflowuid: every user who is not mapped, root of the host among them.
UNMAPPED = 65534
# Of one path, as in the kernel.
_MOST_LINKS = 40


def find_home_folder() -> Path:
    """The home directory of this user: HOME, or that of the account. HostError if there is neither, as in a container
    that runs as a number."""
    try:
        return Path.home()
    except RuntimeError:
        raise HostError(
            "this user has no home directory", where=f"uid {os.getuid()}", hint="set HOME to a folder of this user"
        ) from None


def find_own_folder(variable: str, default: str) -> Path:
    """The folder of this program in one of the user's folders, as the XDG Base Directory Specification names them: by a
    variable that is an absolute path, else `default` in the home directory. It need not exist."""
    named = os.environ.get(variable, "")
    return (Path(named) if named.startswith("/") else find_home_folder() / default) / "ktrdr-vm"


def find_configuration() -> Path:
    """The folder of this user's configuration; it need not exist."""
    return find_own_folder("XDG_CONFIG_HOME", ".config")


def find_account_folder(uid: int) -> str:
    """The home directory of an account; /nonexistent for a number without one."""
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/nonexistent"


def name_user(uid: int) -> str:
    """The name of a user; the number of one without an account."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def name_group(gid: int) -> str:
    """The name of a group; the number of one that has none, such as that of a device of another host."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def find_changeable(path: Path) -> str:
    """The first part of a path, from the top, that users other than root and this one may change; empty if there is
    none. The folders that contain links of the path are parts of it.

    A world-writable folder with the sticky bit, such as /tmp, is accepted, but its content is checked.
    """
    resolved = path.resolve()
    for part in _list_parts(path):
        try:
            facts = part.lstat()
        except FileNotFoundError:
            return ""
        sticky = stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX and part != resolved
        # Everybody may write the mode of a link, which has no effect: whoever may change its folder replaces it.
        writable = facts.st_mode & 0o022 and not sticky and not stat.S_ISLNK(facts.st_mode)
        if not is_trusted_owner(facts.st_uid) or writable:
            return str(part)
    return ""


def _list_parts(path: Path) -> Iterator[Path]:
    """Every folder and link through which the kernel reaches a path, and its end, from the top."""
    here, left, links = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    yield here
    while left:
        name = left.pop()
        here = here.parent if name == ".." else here / name
        yield here
        if here.is_symlink() and links < _MOST_LINKS:
            links += 1
            target = here.readlink()
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here.parent


def is_trusted_owner(uid: int) -> bool:
    """True for root and this user. In a world root of the host is not told from others; entering it has checked
    before."""
    return uid in (0, os.geteuid()) or (uid == UNMAPPED and in_user_namespace())


@functools.cache
def in_user_namespace() -> bool:
    """True in a world, and in any other user namespace that maps some ids only. Remembered: whoever enters one clears
    the cache."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False  # no Linux
