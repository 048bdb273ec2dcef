# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH106, PTH108, PTH110, PTH111, PTH112
# ruff: noqa: PTH113, PTH115, PTH116, PTH118, PTH119, PTH120, PTH121, PTH123, S324
"""Files in the guest: `stat`, `file` and `copy`. Runs in the guest, as the user of the task."""

import base64
import contextlib
import grp
import hashlib
import os
import pwd
import re
import shutil
import stat as st
import tempfile
from typing import Any


class Refused(Exception):
    pass


def run(arguments):
    action: Any = {"stat": stat_file, "file": set_state, "place": place, "probe": probe}[arguments.pop("action")]
    try:
        return action(**arguments)
    except Refused as error:
        return {"failed": True, "msg": str(error)}
    except (OSError, LookupError, ValueError) as error:
        return {"failed": True, "msg": f"{type(error).__name__}: {error}"}


def digest(path, algorithm="sha1"):
    found = hashlib.new(algorithm)
    with open(path, "rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def describe(path):
    """The attributes of a path in results of `copy` and `file`."""
    if not os.path.lexists(path):
        return {"path": path, "state": "absent"}
    info = os.lstat(path)
    kind = (
        "link"
        if st.S_ISLNK(info.st_mode)
        else "directory"
        if st.S_ISDIR(info.st_mode)
        else "hard"
        if info.st_nlink > 1
        else "file"
    )
    return {
        "path": path, "state": kind, "mode": f"0{st.S_IMODE(info.st_mode):03o}", "uid": info.st_uid, "gid": info.st_gid,
        "size": info.st_size, "owner": name_of_user(info.st_uid), "group": name_of_group(info.st_gid),
    }  # fmt: skip


def name_of(look_up, number):
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


def name_of_user(uid):
    return name_of(pwd.getpwuid, uid)


def name_of_group(gid):
    return name_of(grp.getgrgid, gid)


def is_link(path):
    return os.path.lexists(path) and st.S_ISLNK(os.lstat(path).st_mode)


def write_beside(target, data):
    """Replace or create a file in one step. It keeps the rights of the file that it replaces; a link becomes a new
    file."""
    exists = os.path.lexists(target) and not is_link(target)
    rights = st.S_IMODE(os.stat(target).st_mode) if exists else None
    descriptor, beside = tempfile.mkstemp(dir=os.path.dirname(target) or ".", prefix=".ansible_tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, rights if rights is not None else 0o666 & ~mask)
        if exists and os.geteuid() == 0:
            info = os.stat(target)
            os.chown(beside, info.st_uid, info.st_gid)
        os.rename(beside, target)
    except BaseException:
        os.unlink(beside)
        raise


def stat_file(path, follow=False, get_checksum=True, checksum_algorithm="sha1"):
    path = os.path.expanduser(path)
    try:
        info = os.stat(path) if follow else os.lstat(path)
    except FileNotFoundError:
        return {"stat": {"exists": False}}
    mode = info.st_mode
    found = {
        "exists": True,
        "path": path,
        "mode": f"{st.S_IMODE(mode):04o}",
        "isdir": st.S_ISDIR(mode),
        "ischr": st.S_ISCHR(mode),
        "isblk": st.S_ISBLK(mode),
        "isreg": st.S_ISREG(mode),
        "isfifo": st.S_ISFIFO(mode),
        "islnk": st.S_ISLNK(mode),
        "issock": st.S_ISSOCK(mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "size": info.st_size,
        "inode": info.st_ino,
        "dev": info.st_dev,
        "nlink": info.st_nlink,
        "atime": info.st_atime,
        "mtime": info.st_mtime,
        "ctime": info.st_ctime,
        "isuid": bool(mode & st.S_ISUID),
        "isgid": bool(mode & st.S_ISGID),
        "pw_name": name_of_user(info.st_uid),
        "gr_name": name_of_group(info.st_gid),
        "readable": os.access(path, os.R_OK),
        "writeable": os.access(path, os.W_OK),
        "executable": os.access(path, os.X_OK),
    }
    for who, shift in (("usr", 6), ("grp", 3), ("oth", 0)):
        for letter, bit in (("r", 4), ("w", 2), ("x", 1)):
            found[letter + who] = bool(mode >> shift & bit)
    if found["islnk"]:
        found["lnk_source"], found["lnk_target"] = os.path.realpath(path), os.readlink(path)
    if found["isreg"] and get_checksum and found["readable"]:
        found["checksum"] = digest(path, checksum_algorithm)
    return {"stat": found}


def wanted_mode(mode, path):
    """Parse an octal mode as a number or text, or a symbolic one (`u=rw,g+x`)."""
    if isinstance(mode, int):
        return mode
    with contextlib.suppress(ValueError):
        return int(mode, 8)
    current = st.S_IMODE(os.stat(path).st_mode)
    folder = os.path.isdir(path)
    for clause in mode.split(","):
        who, *rest = re.split(r"([-+=])", clause)
        if not rest or any(one not in "ugo" for one in who if who != "a"):
            raise Refused(f"bad symbolic permission for mode: {mode}")
        # Without a class of users, the bits of the umask are left alone.
        masked = umask() if not who else 0
        for sign, letters in zip(rest[::2], rest[1::2], strict=False):
            for one in "ugo" if who in ("", "a") else who:
                current = apply_clause(current, one, sign, letters, masked, folder)
    return current


def umask():
    now = os.umask(0o022)
    os.umask(now)
    return now


def apply_clause(current, one, sign, letters, masked, folder):
    """A mode after one of `ugo`, one of `-+=` and letters, as in `u+rw`."""
    shift, special = {"u": (6, st.S_ISUID), "g": (3, st.S_ISGID), "o": (0, st.S_ISVTX)}[one]
    bits = 0
    for letter in letters:
        if letter in "ugo":
            bits |= (current >> {"u": 6, "g": 3, "o": 0}[letter] & 7) << shift
        elif letter in "rwx":
            bits |= ({"r": 4, "w": 2, "x": 1}[letter] << shift) & ~masked
        elif letter == "X":
            bits |= (1 if folder or current & 0o111 else 0) << shift
        elif (letter == "s" and one != "o") or (letter == "t" and one == "o"):
            bits |= special
        elif letter not in "st":
            raise Refused(f"bad symbolic permission for mode: {letters}")
    if sign == "=":
        return (current & ~(7 << shift | special)) | bits
    return current | bits if sign == "+" else current & ~bits


def set_rights(path, mode=None, owner=None, group=None, check=False, follow=False):
    """Set mode, owner and group, with `follow` those of what a link leads to. True if one of them was different."""
    if follow and os.path.exists(path):
        path = os.path.realpath(path)
    if check and not os.path.lexists(path):
        return False
    changed = False
    info = os.lstat(path)
    uid = -1 if owner is None else int(owner) if str(owner).isdigit() else pwd.getpwnam(owner).pw_uid
    gid = -1 if group is None else int(group) if str(group).isdigit() else grp.getgrnam(group).gr_gid
    if (uid not in (-1, info.st_uid)) or (gid not in (-1, info.st_gid)):
        changed = True
        if not check:
            os.chown(path, uid, gid, follow_symlinks=False)
    if mode is not None and not st.S_ISLNK(info.st_mode):
        wanted = wanted_mode(mode, path)
        if wanted != st.S_IMODE(os.lstat(path).st_mode):
            changed = True
            if not check:
                os.chmod(path, wanted)
    return changed


def set_state(path, rights, state=None, src=None, recurse=False, force=False, follow=True, check=False):
    """`rights` has mode, owner and group."""
    path = os.path.expanduser(path)
    now = describe(path)["state"]
    state = state or (now if now != "absent" else "directory" if recurse else "file")
    if recurse and state != "directory":
        raise Refused("recurse option requires state to be 'directory'")
    if src is not None and state not in ("link", "hard"):
        raise Refused("src option requires state to be 'link' or 'hard'")
    if follow and now == "link" and state in ("file", "directory") and os.path.exists(path):
        path = os.path.realpath(path)
        now = describe(path)["state"]
    changed = False
    if state == "absent":
        if now == "absent":
            return {"changed": False, "path": path, "state": "absent"}
        if not check:
            if now == "directory":
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return {"changed": True, "path": path, "state": "absent"}
    if state in ("link", "hard"):
        if src is None and now != state:
            raise Refused(f"src is required for creating new {state}links")
        if (
            src is not None
            and not (now == "link" and os.readlink(path) == src)
            and not (state == "hard" and now == "hard" and os.path.samefile(path, src))
        ):
            if now != "absent" and not force and now not in ("link", "hard"):
                raise Refused(f"refusing to convert from {now} to {state} for {path}")
            changed = True
            if not check:
                if state == "link" and not force and not os.path.exists(os.path.join(os.path.dirname(path), src)):
                    raise Refused(
                        f'src file does not exist, use "force=yes" if you really want to create the link: {src}'
                    )
                if now == "directory":
                    os.rmdir(path)
                elif now != "absent":
                    os.unlink(path)
                (os.symlink if state == "link" else os.link)(src, path)
    elif state == "directory":
        if now in ("file", "hard", "link"):
            raise Refused(f"{path} already exists as a {now if now == 'link' else 'file'}")
        if now == "absent":
            changed = True
            if not check:
                missing, above = [], path.rstrip("/")
                while above and not os.path.isdir(above):
                    missing.append(above)
                    above = os.path.dirname(above)
                for folder in reversed(missing):
                    os.mkdir(folder)
                    set_rights(folder, **rights)
    elif now == "absent":
        if state != "touch":
            raise Refused(f"file ({path}) is absent, cannot continue")
        changed = True
        if not check:
            open(path, "ab").close()
    elif state == "touch":
        changed = True
        if not check:
            os.utime(path)
    elif state == "file" and now in ("directory", "link"):
        raise Refused(f"file ({path}) is {now}, cannot continue")
    changed = set_rights(path, **rights, check=check, follow=follow) or changed
    if recurse and state == "directory":
        for folder, folders, files in os.walk(path):
            for name in folders + files:
                changed = set_rights(os.path.join(folder, name), **rights, check=check) or changed
    result = describe(path)
    result.update(changed=changed)
    if state in ("link", "hard"):
        result.update(dest=path, src=src)
    elif state == "touch":
        result.update(dest=path)
    return result


def probe(dest, name):
    """The destination path of a file, and its current state."""
    dest = os.path.expanduser(dest)
    if name and (dest.endswith("/") or os.path.isdir(dest)):
        dest = os.path.join(dest, name)
    checksum = digest(dest) if os.path.isfile(dest) and os.access(dest, os.R_OK) else None
    return {"changed": False, "dest": dest, "checksum": checksum, "exists": os.path.lexists(dest)}


def place(dest, given, rights, name="", force=True, check=False, directory_mode=None, follow=False):
    """Copy what is given to `dest`, if it differs: `content` (base64), an uploaded file (`upload`), or a file of the
    guest (`source`). `rights` has mode, owner and group."""
    upload, source = given.get("upload"), given.get("source")
    try:
        if source is not None:
            source = os.path.expanduser(source)
            if not os.path.exists(source):
                raise Refused(f"Source {source} not found")
            name = os.path.basename(source)
            with open(source, "rb") as stream:
                data = stream.read()
            if rights["mode"] == "preserve":
                rights["mode"] = st.S_IMODE(os.stat(source).st_mode)
        elif upload is not None:
            with open(upload, "rb") as stream:
                data = stream.read()
        else:
            data = base64.b64decode(given["content"])
        created = dest.endswith("/")
        dest = probe(dest, name)["dest"]
        # A link that leads to nothing is not followed.
        dest = os.path.realpath(dest) if follow and os.path.exists(dest) else dest
        folder = os.path.dirname(dest) or "."
        if not os.path.isdir(folder):
            if not created and not directory_mode:
                raise Refused(f"Destination directory {folder} does not exist")
            if not check:
                os.makedirs(folder)
                set_rights(folder, **dict(rights, mode=directory_mode))
        exists = os.path.lexists(dest)
        # A link is not followed: it becomes a file, also if what it leads to has the same content.
        same = os.path.isfile(dest) and not is_link(dest) and digest(dest) == hashlib.sha1(data).hexdigest()
        changed = not same and (force or not exists)
        if changed and not check:
            write_beside(dest, data)
        if not check or exists:
            changed = set_rights(dest, **rights, check=check) or changed
        result = describe(dest)
        result.pop("path")
        result.update(changed=changed, dest=dest, checksum=hashlib.sha1(data).hexdigest(), size=len(data))
        return result
    finally:
        if upload is not None and os.path.exists(upload):
            os.unlink(upload)
