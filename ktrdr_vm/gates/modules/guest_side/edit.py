# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH103, PTH110, PTH111, PTH112, PTH120, PTH123
"""Lines and parts of files in the guest: `lineinfile` and `replace`."""

import os
import re

from ktrdr_vm.gates.modules.guest_side.files import Refused, set_rights, write_beside


def run(arguments):
    action = {"line": edit_line, "replace": replace_parts}[arguments.pop("action")]
    rights = {name: arguments.pop(name) for name in ("mode", "owner", "group", "check")}
    try:
        path = os.path.expanduser(arguments.pop("path"))
        if os.path.isdir(path):
            return {"failed": True, "rc": 256, "msg": f"Path {path} is a directory !"}
        return action(path, rights, arguments)
    except Refused as error:
        return {"failed": True, "msg": str(error)}
    except (OSError, LookupError, ValueError, re.error) as error:
        return {"failed": True, "msg": f"{type(error).__name__}: {error}"}


def finish(path, rights, result, data):
    """Write the new content, if there is one, and set the rights."""
    if data is not None and not rights["check"]:
        write_beside(os.path.realpath(path), data)
    if os.path.lexists(path) and set_rights(path, **rights):
        result["msg"] += (" and " if result["changed"] else "") + "ownership, perms or SE linux context changed"
        result["changed"] = True
    return result


def edit_line(path, rights, options):
    options = dict(
        options, line=None if options["line"] is None else options["line"].encode("utf-8", "surrogateescape")
    )
    state, exists = options["state"], os.path.exists(path)
    if state == "absent" and not exists:
        return {"changed": False, "msg": "file not present"}
    if not exists and not options["create"]:
        return {"failed": True, "rc": 257, "msg": f"Destination {path} does not exist !"}
    lines = []
    if exists:
        with open(path, "rb") as stream:
            lines = stream.readlines()
    find = make_finder(options)
    if state == "absent":
        kept = [line for line in lines if not (find(line) if find else line.rstrip(b"\r\n") == options["line"])]
        count = len(lines) - len(kept)
        result = {
            "changed": count > 0,
            "found": count,
            "backup": "",
            "msg": f"{count} line(s) removed" if count else "",
        }
        return finish(path, rights, result, b"".join(kept) if count else None)
    message, lines = place_line(lines, find, options)
    if not exists and not rights["check"]:
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            os.makedirs(folder)
    return finish(
        path, rights, {"changed": bool(message), "msg": message, "backup": ""}, b"".join(lines) if message else None
    )


def make_finder(options):
    """What finds the line that is wanted, or None if only an equal line counts."""
    if options["regexp"] is not None:
        return re.compile(options["regexp"].encode("utf-8", "surrogateescape")).search
    if options["search_string"] is not None:
        wanted = options["search_string"].encode("utf-8", "surrogateescape")
        return lambda line: wanted in line
    return None


def place_line(lines, find, options):
    """The message of a change, or an empty text, and the lines afterwards."""
    line, first = options["line"], options["firstmatch"]
    found = [number for number, one in enumerate(lines) if find and find(one)]
    if found:
        number = found[0] if first else found[-1]
        new = find(lines[number]).expand(line) if options["backrefs"] else line
        new += b"" if new.endswith(b"\n") else b"\n"
        same = lines[number] == new
        return ("" if same else "line replaced"), [*lines[:number], new, *lines[number + 1 :]]
    after, before = options["insertafter"], options["insertbefore"]
    near = after if after not in (None, "BOF", "EOF") else before if before not in (None, "BOF") else None
    equal, place = find_place(lines, line, near, after is not None and near == after, first)
    if equal is not None:
        new = line + (b"" if line.endswith(b"\n") else b"\n")
        if find is not None and lines[equal] != new:
            return "line replaced", [*lines[:equal], new, *lines[equal + 1 :]]
        if find is None and lines[equal] != new:
            return "line replaced", [*lines[:equal], new, *lines[equal + 1 :]]
        return "", lines
    if options["backrefs"]:
        return "", lines
    if before == "BOF" or after == "BOF":
        return "line added", [line + b"\n", *lines]
    if place is None:
        ended = not lines or lines[-1][-1:] in (b"\n", b"\r")
        return "line added", [*lines, *([] if ended else [b"\n"]), line + b"\n"]
    if place == len(lines) and lines and lines[-1][-1:] not in (b"\n", b"\r") and find is None:
        lines = [*lines[:-1], lines[-1] + b"\n"]
    return "line added", [*lines[:place], line + b"\n", *lines[place:]]


def find_place(lines, line, near, after, first):
    """The number of an equal line, and where a new line belongs; None for each that there is not."""
    pattern = re.compile(near.encode("utf-8", "surrogateescape")) if near is not None else None
    equal = place = None
    for number, one in enumerate(lines):
        if one.rstrip(b"\r\n") == line:
            equal = number
        elif pattern is not None and pattern.search(one):
            place = number + 1 if after else number
            if first:
                break
    return equal, place


def replace_parts(path, rights, options):
    if not os.path.exists(path):
        return {"failed": True, "rc": 257, "msg": f"Path {path} does not exist !"}
    with open(path, "rb") as stream:
        whole = stream.read().decode("utf-8", "surrogateescape")
    after, before = options["after"], options["before"]
    start, end = 0, len(whole)
    if after or before:
        pattern = f"{after or ''}(?P<subsection>.*{'?' if after and before else ''}){before or ''}"
        section = re.search(pattern, whole, re.DOTALL)
        if section is None:
            return {
                "changed": False,
                "rc": 0,
                "msg": f"Pattern for before/after params did not match the given file: {pattern}",
            }
        start, end = section.span("subsection")
    new, count = re.subn(options["regexp"], options["replace"], whole[start:end], flags=re.MULTILINE)
    changed = count > 0 and new != whole[start:end]
    data = (whole[:start] + new + whole[end:]).encode("utf-8", "surrogateescape") if changed else None
    return finish(
        path, rights, {"changed": changed, "rc": 0, "msg": f"{count} replacements made" if changed else ""}, data
    )
