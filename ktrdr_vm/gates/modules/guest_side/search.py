# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH111, PTH112, PTH118, PTH123
"""`find` and `slurp` in the guest."""

import base64
import fnmatch
import os
import re
import stat as st
import time

from ktrdr_vm.gates.modules.guest_side.files import digest, name_of_group, name_of_user

MAX_FOUND = 10_000
MAX_SLURP = 1024 * 1024
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZES = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
KINDS = {"file": st.S_ISREG, "directory": st.S_ISDIR, "link": st.S_ISLNK, "any": lambda mode: True}


def run(arguments):
    try:
        return {"find": find, "slurp": slurp}[arguments.pop("action")](arguments)
    except (OSError, ValueError, re.error) as error:
        return {"failed": True, "msg": f"{type(error).__name__}: {error}"}


def slurp(arguments):
    path = os.path.expanduser(arguments["src"])
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_SLURP + 1)
    except FileNotFoundError:
        return {"failed": True, "msg": f"File not found: {path}"}
    except IsADirectoryError:
        return {"failed": True, "msg": f"Source is a directory and must be a file: {path}"}
    except PermissionError:
        return {"failed": True, "msg": f"File is not readable: {path}"}
    if len(data) > MAX_SLURP:
        return {
            "failed": True,
            "msg": f"{path} is larger than {MAX_SLURP >> 20} MiB; use fetch, or search it with a command",
        }
    return {"changed": False, "content": base64.b64encode(data).decode(), "source": path, "encoding": "base64"}


def number_with_unit(text, units, name):
    if text is None:
        return None
    found = re.fullmatch(r"(-?\d+)([a-z])?", str(text).lower())
    if found is None or (found.group(2) or next(iter(units))) not in units:
        raise ValueError(f"failed to process {name}")
    return int(found.group(1)) * units.get(found.group(2), 1)


def beyond(value, limit):
    """True if a value is at least a positive limit, or at most a negative one."""
    return limit is None or (value >= limit if limit >= 0 else value <= -limit)


def matches(name, options):
    if options["use_regex"]:
        hit = lambda patterns: any(re.match(pattern, name) for pattern in patterns)  # noqa: E731
    else:
        hit = lambda patterns: any(fnmatch.fnmatch(name, pattern) for pattern in patterns)  # noqa: E731
    return hit(options["patterns"] or (".*" if options["use_regex"] else "*",)) and not hit(options["excludes"] or ())


def contains(path, options):
    if options["contains"] is None:
        return True
    pattern = re.compile(options["contains"])
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            if options["read_whole_file"]:
                return pattern.search(stream.read()) is not None
            return any(pattern.match(line) for line in stream)
    except OSError:
        return False


def describe(path, info):
    mode = info.st_mode
    found = {
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
        "pw_name": name_of_user(info.st_uid),
        "gr_name": name_of_group(info.st_gid),
        "isuid": bool(mode & st.S_ISUID),
        "isgid": bool(mode & st.S_ISGID),
    }
    for who, shift in (("usr", 6), ("grp", 3), ("oth", 0)):
        for letter, bit in (("r", 4), ("w", 2), ("x", 1)):
            found[letter + who] = bool(mode >> shift & bit)
    return found


def find(options):
    options["age"] = number_with_unit(options["age"], UNITS, "age")
    options["size"] = number_with_unit(options["size"], SIZES, "size")
    limit = options["limit"]
    if limit is not None and limit <= 0:
        return {"failed": True, "msg": f"limit cannot be {limit} (use None for unlimited)"}
    files, skipped, examined = [], {}, 0
    for top in options["paths"]:
        top = os.path.expanduser(top)
        if not os.path.isdir(top):
            skipped[top] = f"'{top}' is not a directory"
            continue
        wrong = lambda error: skipped.__setitem__(str(error.filename), str(error))  # noqa: E731
        for folder, folders, names in os.walk(top, onerror=wrong, followlinks=options["follow"]):
            examined += len(folders) + len(names)
            for name in names + folders:
                path = os.path.normpath(os.path.join(folder, name))
                depth = path.count("/") - (top.rstrip("/") + "/").count("/") + 1
                if options["depth"] and depth > options["depth"]:
                    folders.clear()
                    continue
                found = check(path, name, options)
                if found is not None:
                    files.append(found)
                if len(files) > MAX_FOUND:
                    return {"failed": True, "msg": f"more than {MAX_FOUND} files; narrow the search"}
                if len(files) == limit:
                    break
            if not options["recurse"] or len(files) == limit:
                break
    said = "Not all paths examined, check warnings for details" if skipped else "All paths examined"
    if limit is not None and len(files) == limit and not skipped:
        said = "Limit of matches reached"
    return {
        "changed": False,
        "files": files,
        "matched": len(files),
        "examined": examined,
        "skipped_paths": skipped,
        "msg": said,
    }


def check(path, name, options):
    """The description of a file that meets all conditions, else None."""
    if name.startswith(".") and not options["hidden"]:
        return None
    info = os.lstat(path)
    kind = options["file_type"]
    if not KINDS[kind](info.st_mode) or not matches(name, options):
        return None
    if not beyond(time.time() - getattr(info, "st_" + options["age_stamp"]), options["age"]):
        return None
    regular = st.S_ISREG(info.st_mode)
    if regular and kind in ("file", "any") and not beyond(info.st_size, options["size"]):
        return None
    if kind == "file" and not contains(path, options):
        return None
    found = describe(path, info)
    if regular and options["get_checksum"]:
        found["checksum"] = digest(path, options["checksum_algorithm"])
    return found
