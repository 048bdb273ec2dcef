"""`copy`, `template`, `fetch`, `file` and `stat`: the guest does the work; the host sends and receives bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import posixpath
import secrets
import shutil
from typing import Any

from ktrdr_vm.errors import GuestError
from ktrdr_vm.gates.model import MAX_SENT
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, run_guest_side
from ktrdr_vm.gates.modules.sources import list_source, read_source
from ktrdr_vm.host.beneath import check_name, create_file, remove_file
from ktrdr_vm.host.capacity import DISK_FLOOR

_EMBEDDED = 256 * 1024
_MAX_FETCH = 256 * 1024 * 1024
# Files of one gate, as many as a run fetches as artifacts. A loop over what the guest lists may name any number.
MAX_FETCHED = 10_000


def run_copy(call: Call) -> Result:
    dest = str(call.get("dest"))
    content = call.arguments.get("content")
    if content is not None:
        text = json.dumps(content) if isinstance(content, dict | list) else str(content)
        return _place(call, text.encode("utf-8", "surrogateescape"), dest)
    src = str(call.get("src"))
    if call.get("remote_src", False):
        return _finish(
            run_guest_side(call, "trees", {"given": {"source": src}, "dest": dest, **_options(call)}), src=src
        )
    within, known = call.host.find_folders("files"), call.host.files
    listed = list_source(call.host.roots, src, within=within, known=known)
    if listed is None:
        data = read_source(call.host.roots, src, max_bytes=MAX_SENT, within=within, known=known)
        return _finish(_place(call, data, dest, name=posixpath.basename(src)), src=src)
    # As in rsync: `src/` copies the content of the folder, `src` the folder itself.
    top = "" if src.endswith("/") else posixpath.basename(src) + "/"
    results = []
    for name, inner in listed:
        data = read_source(call.host.roots, name, max_bytes=MAX_SENT, known=known)
        results.append(_place(call, data, f"{dest.rstrip('/')}/{top}{inner}", make_folder=True))
        if results[-1].get("failed"):
            return _finish(results[-1], src=src)
    return {"changed": any(result["changed"] for result in results), "dest": dest, "src": src, "files": len(results)}


def run_template(call: Call) -> Result:
    src = str(call.get("src"))
    within, known = call.host.find_folders("templates"), call.host.files
    data = read_source(call.host.roots, src, max_bytes=256 * 1024, within=within, known=known)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ModuleFailure(f"{src!r} is not UTF-8") from None
    rendered = call.templar.render_file(
        text, call.scope, trim_blocks=call.get("trim_blocks", True), lstrip_blocks=call.get("lstrip_blocks", False)
    )
    name = posixpath.basename(src)
    return _finish(_place(call, rendered.encode("utf-8", "surrogateescape"), str(call.get("dest")), name=name), src=src)


def run_file(call: Call) -> Result:
    arguments = {
        "path": str(call.get("path")),
        "state": call.get("state"),
        "src": call.get("src"),
        "rights": _rights(call),
    }
    flags = {
        "recurse": call.get("recurse", False),
        "follow": call.get("follow", True),
        "force": call.get("force", False),
        "check": call.check,
    }
    return run_guest_side(call, "files", {"action": "file", **arguments, **flags})


def run_stat(call: Call) -> Result:
    arguments = {
        "path": str(call.get("path")),
        "follow": call.get("follow", False),
        "get_checksum": call.get("get_checksum", True),
        "checksum_algorithm": call.get("checksum_algorithm", "sha1"),
    }
    return run_guest_side(call, "files", {"action": "stat", **arguments})


def run_fetch(call: Call) -> Result:
    """Fetch one file into the artifacts of the run."""
    src, dest = str(call.get("src")), str(call.get("dest"))
    if call.host.artifacts is None:
        raise ModuleFailure("there is no folder for artifacts, so nothing can be fetched")
    if call.get("flat", False):
        name = dest + posixpath.basename(src) if dest.endswith("/") else dest
    else:
        name = f"{dest.rstrip('/')}/guest/{src.lstrip('/')}"
    if wrong := check_name(name):
        raise ModuleFailure(
            f"cannot fetch to {name[:200]!r}: {wrong}; a fetch goes to a relative name beneath the run's artifacts"
        )
    if call.check:
        return {"changed": True, "dest": name, "file": src}
    if name not in call.host.fetched and len(call.host.fetched) >= MAX_FETCHED:
        raise ModuleFailure(f"this gate has fetched {MAX_FETCHED} files; fetch one archive instead")
    call.host.fetched.add(name)
    try:
        # It belongs to root until the run ends, so no other user can create a link in its path.
        call.host.artifacts.mkdir(parents=True, exist_ok=True)
        descriptor = create_file(call.host.artifacts, name, replace=True)
    except OSError as error:
        raise ModuleFailure(f"cannot fetch to {name!r}: {error.strerror}") from None
    sink = _Hashing(os.fdopen(descriptor, "wb"))
    # A loop may fetch many files, so the disk reserve of the host is checked.
    room = min(_MAX_FETCH, shutil.disk_usage(call.host.artifacts).free - (DISK_FLOOR << 20))
    try:
        if room <= 0:
            raise ModuleFailure(f"the host has less than {DISK_FLOOR} MiB of free disk, so nothing more is fetched")
        size = call.guest.download(src, sink, max_bytes=room, become=call.become, timeout=call.timeout)  # type: ignore[arg-type]
    except BaseException as error:
        # An incomplete file is removed.
        sink.stream.close()
        remove_file(call.host.artifacts, name)
        if not isinstance(error, GuestError):
            raise
        missing = not call.get("fail_on_missing", True) and "No such file" in str(error)
        result: Result = {"changed": False, "file": src, "msg": f"the remote file cannot be fetched: {error.message}"}
        return result if missing else result | {"failed": True}
    finally:
        sink.stream.close()
    return {
        "changed": True,
        "dest": name,
        "file": src,
        "size": size,
        "checksum": sink.sha1.hexdigest(),
        "sha256": sink.sha256.hexdigest(),
    }


class _Hashing:
    """A file that computes the digest of the written bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.sha1 = hashlib.sha1(usedforsecurity=False)
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha1.update(data)
        self.sha256.update(data)
        return int(self.stream.write(data))


def _place(call: Call, data: bytes, dest: str, *, name: str = "", make_folder: bool = False) -> Result:
    arguments: dict[str, Any] = {"action": "place", "dest": dest, "name": name, **_options(call)}
    if make_folder and not arguments["directory_mode"]:
        arguments["directory_mode"] = "0755"
    if len(data) <= _EMBEDDED:
        arguments["given"] = {"content": base64.b64encode(data).decode()}
        return _finish(run_guest_side(call, "files", arguments))
    probe = run_guest_side(call, "files", {"action": "probe", "dest": dest, "name": name})
    same = probe.get("checksum") == hashlib.sha1(data, usedforsecurity=False).hexdigest()
    if call.check:
        return {"changed": not same, "dest": str(probe.get("dest", dest))}
    upload = f"/tmp/.ktrdr-copy-{secrets.token_hex(8)}"
    call.guest.upload(io.BytesIO(data), upload, mode=0o600, become=call.become, timeout=call.timeout)
    return _finish(run_guest_side(call, "files", arguments | {"given": {"upload": upload}}))


def _rights(call: Call) -> dict[str, Any]:
    return {name: call.get(name) for name in ("mode", "owner", "group")}


def _options(call: Call) -> dict[str, Any]:
    return {
        "rights": _rights(call),
        "force": call.get("force", True),
        "directory_mode": call.get("directory_mode"),
        "follow": call.get("follow", False),
        "check": call.check,
    }


def _finish(result: Result, **more: Any) -> Result:
    return {"changed": False, **result, **more}
