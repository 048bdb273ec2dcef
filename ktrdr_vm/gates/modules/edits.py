"""`lineinfile`, `replace`, `find`, `slurp`, `get_url` and `setup`, run in the guest."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.gates.modules.base import Call, Result, run_guest_side


def _rights(call: Call) -> dict[str, Any]:
    return {"mode": call.get("mode"), "owner": call.get("owner"), "group": call.get("group"), "check": call.check}


def run_lineinfile(call: Call) -> Result:
    state = str(call.get("state", "present"))
    texts = {name: call.get(name) for name in ("line", "regexp", "search_string", "insertafter", "insertbefore")}
    if texts["insertafter"] is None and texts["insertbefore"] is None:
        texts["insertafter"] = "EOF"
    flags = {name: call.get(name, False) for name in ("create", "backrefs", "firstmatch")}
    return run_guest_side(
        call,
        "edit",
        {"action": "line", "path": str(call.get("path")), "state": state, **texts, **flags, **_rights(call)},
    )


def run_replace(call: Call) -> Result:
    texts = {
        "regexp": str(call.get("regexp")),
        "replace": str(call.get("replace", "")),
        "after": call.get("after"),
        "before": call.get("before"),
    }
    return run_guest_side(call, "edit", {"action": "replace", "path": str(call.get("path")), **texts, **_rights(call)})


def run_find(call: Call) -> Result:
    lists = {name: [str(one) for one in call.get(name, [])] for name in ("paths", "patterns", "excludes")}
    flags = {
        name: call.get(name, False)
        for name in ("recurse", "hidden", "follow", "get_checksum", "use_regex", "read_whole_file")
    }
    values = {name: call.get(name) for name in ("contains", "age", "size", "depth", "limit")}
    kinds = {"file_type": call.get("file_type", "file"), "age_stamp": call.get("age_stamp", "mtime")}
    algorithm = call.get("checksum_algorithm", "sha1")
    return run_guest_side(
        call, "search", {"action": "find", "checksum_algorithm": algorithm, **lists, **flags, **values, **kinds}
    )


def run_slurp(call: Call) -> Result:
    return run_guest_side(call, "search", {"action": "slurp", "src": str(call.get("src"))})


def run_get_url(call: Call) -> Result:
    arguments = {
        "url": str(call.get("url")),
        "dest": str(call.get("dest")),
        "checksum": str(call.get("checksum", "")),
        "force": call.get("force", False),
        "headers": call.get("headers", {}),
        "timeout": call.get("timeout", 10),
        "url_username": call.get("url_username"),
        "url_password": call.get("url_password"),
        "validate_certs": call.get("validate_certs", True),
    }
    return run_guest_side(call, "download", arguments | _rights(call))


def run_setup(call: Call) -> Result:
    return run_guest_side(call, "facts", {})
