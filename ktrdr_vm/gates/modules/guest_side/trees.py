# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH102, PTH103, PTH108, PTH110, PTH111, PTH112, PTH113
# ruff: noqa: PTH115, PTH116, PTH118, PTH119, PTH120, PTH202, PTH208, PTH211
"""`copy` with `remote_src` in the guest: one file, or a folder with everything in it."""

import os
import shutil
import stat as st

from ktrdr_vm.gates.modules.guest_side.files import Refused, describe, digest, is_link, place, set_rights


def run(arguments):
    try:
        source = os.path.expanduser(arguments["given"]["source"])
        if os.path.isdir(source):
            return copy_folder(source, os.path.expanduser(arguments["dest"]), arguments)
        return place(**arguments)
    except Refused as error:
        return {"failed": True, "msg": str(error)}
    except (OSError, LookupError, ValueError) as error:
        return {"failed": True, "msg": f"{type(error).__name__}: {error}"}


def copy_folder(source, dest, options):
    """As in rsync: `source/` copies the content of the folder, `source` the folder itself, into `dest`."""
    rights, check = options["rights"], options["check"]
    name = os.path.basename(source)
    if rights["mode"] == "preserve":
        rights["mode"] = st.S_IMODE(os.stat(source).st_mode)
    changed = False
    if dest.endswith("/") and not os.path.isdir(dest):
        changed = True
        if not check:
            make_folders(dest.rstrip("/"), dict(rights, mode=options["directory_mode"]))
    target = os.path.join(dest, name)
    # What the rights are set on: the folder that was there before, or that the copy is.
    top = target if os.path.isdir(dest) or dest.endswith("/") else dest
    if os.path.exists(top) and not options["force"]:
        return {"changed": False, "dest": top, "msg": "file already exists"}
    folder = os.path.dirname(top.rstrip("/")) or "."
    if not os.path.isdir(folder) and not (check and changed):
        raise Refused(f"Destination directory {folder} does not exist")
    inside = os.path.realpath(source)
    if os.path.commonpath([inside, os.path.realpath(target)]) == inside:
        raise Refused(f"{source} cannot be copied into itself")
    changed = copy_into(source, target, check) or changed
    changed = set_owners(target, rights, check) or changed
    if os.path.lexists(top):
        changed = set_rights(top, **rights, check=check) or changed
    result = describe(top)
    result.pop("path")
    result.update(changed=changed, dest=top, checksum=None)
    return result


def make_folders(path, rights):
    if not os.path.isdir(path):
        make_folders(os.path.dirname(path) or ".", rights)
        os.mkdir(path)
        set_rights(path, **rights)


def copy_into(source, dest, check):
    """Copy what differs. True if something did. Links stay links; nothing in `dest` is removed."""
    new = not os.path.isdir(dest)
    if new and os.path.lexists(dest):
        raise Refused(f"{dest} exists and is no folder")
    if new and not check:
        os.makedirs(dest)
    changed = new
    for name in sorted(os.listdir(source)):
        one, other = os.path.join(source, name), os.path.join(dest, name)
        mode = os.lstat(one).st_mode
        if st.S_ISDIR(mode):
            changed = copy_into(one, other, check) or changed
        elif st.S_ISLNK(mode) or st.S_ISREG(mode):
            changed = copy_one(one, other, st.S_ISLNK(mode), check) or changed
        else:
            raise Refused(f"{one} is no file, folder or link, and cannot be copied")
    if new and not check:
        shutil.copystat(source, dest)
    return changed


def copy_one(one, other, link, check):
    if os.path.isdir(other) and not is_link(other):
        raise Refused(f"{other} is a folder, and {one} is not")
    if link:
        if is_link(other) and os.readlink(other) == os.readlink(one):
            return False
    elif os.path.isfile(other) and os.path.getsize(other) == os.path.getsize(one) and digest(other) == digest(one):
        return False
    if not check:
        if link:
            if os.path.lexists(other):
                os.unlink(other)
            os.symlink(os.readlink(one), other)
        else:
            shutil.copy2(one, other)
    return True


def set_owners(top, rights, check):
    """Owner and group of everything beneath a folder, and of the folder."""
    wanted = {"owner": rights["owner"], "group": rights["group"]}
    if wanted == {"owner": None, "group": None} or not os.path.isdir(top):
        return False
    changed = set_rights(top, **wanted, check=check)
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            changed = set_rights(os.path.join(folder, name), **wanted, check=check) or changed
    return changed
