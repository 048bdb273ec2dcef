# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH101, PTH104, PTH108, PTH110, PTH111, PTH112, PTH116, PTH118, PTH119, PTH120, PTH202, PTH204, S310
"""`get_url` in the guest, which tests its network."""

import base64
import hashlib
import os
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import formatdate

from ktrdr_vm.gates.modules.guest_side.files import Refused, describe, digest, set_rights

MAX_DOWNLOAD = 4 * 1024**3


def run(arguments):
    rights = {name: arguments.pop(name) for name in ("mode", "owner", "group", "check")}
    try:
        found = get(arguments, rights)
        if not found.get("failed") and os.path.exists(found["dest"]):
            found.update(describe(found["dest"]))
            found.pop("path")
        return found
    except Refused as error:
        return {"failed": True, "msg": str(error)}
    except (OSError, LookupError, ValueError) as error:
        return {"failed": True, "msg": f"{type(error).__name__}: {error}"}


def get(options, rights):
    started = time.time()
    url, dest = options["url"], os.path.expanduser(options["dest"])
    result = {"changed": False, "checksum_dest": None, "checksum_src": None, "dest": dest, "elapsed": 0, "url": url}
    if not url.lower().startswith(("http://", "https://")):
        return dict(result, failed=True, msg="only http and https are supported")
    algorithm, wanted = parse_checksum(options, options["checksum"])
    exists = os.path.exists(dest) and not os.path.isdir(dest)
    differs = exists and wanted is not None and digest(dest, algorithm) != wanted
    if exists and wanted is not None and not differs and not options["force"]:
        changed = set_rights(dest, **rights)
        said = "file already exists but file attributes changed" if changed else "file already exists"
        return dict(result, changed=changed, msg=said)
    headers = {str(name): str(value) for name, value in options["headers"].items()}
    if exists and not options["force"] and not differs:
        headers["If-Modified-Since"] = formatdate(os.path.getmtime(dest), usegmt=True)
    try:
        answer = open_url(url, headers, options)
    except urllib.error.HTTPError as error:
        result["elapsed"] = int(time.time() - started)
        if error.code == 304:
            changed = set_rights(dest, **rights)
            return dict(result, changed=changed, status_code=304, msg="HTTP Error 304: Not Modified")
        return dict(
            result,
            failed=True,
            status_code=error.code,
            response=f"HTTP Error {error.code}: {error.reason}",
            msg="Request failed",
        )
    except (OSError, ValueError) as error:
        return dict(result, failed=True, status_code=-1, response=f"Request failed: {error}", msg="Request failed")
    if os.path.isdir(dest):
        dest = os.path.join(dest, file_name(answer))
        result["dest"] = dest
    folder = os.path.dirname(dest) or "."
    if not os.path.isdir(folder):
        return dict(result, failed=True, msg=f"Destination {folder} does not exist")
    descriptor, beside = tempfile.mkstemp(dir=folder, prefix=".ansible_tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            save(answer, stream)
        result.update(
            elapsed=int(time.time() - started),
            status_code=answer.getcode(),
            checksum_src=digest(beside),
            size=os.path.getsize(beside),
        )
        if wanted is not None and digest(beside, algorithm) != wanted:
            return dict(
                result,
                failed=True,
                msg=f"The checksum for {dest} did not match {wanted}; it was {digest(beside, algorithm)}.",
            )
        result["checksum_dest"] = digest(dest) if os.path.exists(dest) else None
        result["changed"] = result["checksum_src"] != result["checksum_dest"]
        if result["changed"] and not rights["check"]:
            keep_rights(beside, dest)
            os.rename(beside, os.path.realpath(dest))
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
    if os.path.exists(dest):
        result["changed"] = set_rights(dest, **rights) or result["changed"]
        result["md5sum"] = digest(dest, "md5")
    result["msg"] = f"OK ({answer.headers.get('Content-Length') or 'unknown'} bytes)"
    return result


def keep_rights(beside, dest):
    """Give a new file the rights of the one that it replaces, or those of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    if not os.path.exists(dest):
        os.chmod(beside, 0o666 & ~mask)
        return
    info = os.stat(dest)
    os.chmod(beside, info.st_mode & 0o7777)
    if os.geteuid() == 0:
        os.chown(beside, info.st_uid, info.st_gid)


def parse_checksum(options, text):
    """Algorithm and digest of `sha256:…`; the digest may be the URL of a file that has it on a line."""
    if not text:
        return "sha1", None
    algorithm, colon, wanted = text.partition(":")
    if not colon or algorithm not in hashlib.algorithms_available:
        raise Refused("The checksum parameter has to be in format <algorithm>:<checksum>")
    if wanted.startswith(("http://", "https://")):
        name = os.path.basename(urllib.parse.urlsplit(options["url"]).path)
        lines = open_url(wanted, {}, options).read(1 << 20).decode("utf-8", "replace").splitlines()
        rows = [line.split() for line in lines]
        found = [row[0] for row in rows if len(row) > 1 and os.path.basename(row[1].lstrip("*")) == name]
        found = found or [row[0] for row in rows if len(row) == 1 and len(rows) == 1]
        if not found:
            raise Refused(f"Unable to find a checksum for file '{name}' in '{wanted}'")
        wanted = found[0]
    wanted = re.sub(r"\W+", "", wanted).lower()
    if not re.fullmatch(r"[0-9a-f]+", wanted):
        raise Refused("The checksum format is invalid")
    return algorithm, wanted


def open_url(url, headers, options):
    headers = dict(headers)
    if options["url_username"] is not None:
        pair = f"{options['url_username']}:{options['url_password'] or ''}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    context = ssl.create_default_context()
    if not options["validate_certs"]:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers.setdefault("User-Agent", "ansible-httpget")
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.urlopen(request, timeout=options["timeout"], context=context)


def file_name(answer):
    """The name that the server gives the file, or the last part of the address, without any folder."""
    named = answer.headers.get_filename()
    name = os.path.basename(named or urllib.parse.urlsplit(answer.geturl()).path)
    return name if name not in ("", ".", "..") else "index.html"


def save(answer, stream):
    size = 0
    for piece in iter(lambda: answer.read(1 << 20), b""):
        size += len(piece)
        if size > MAX_DOWNLOAD:
            raise Refused(f"the file is larger than {MAX_DOWNLOAD >> 30} GiB")
        stream.write(piece)
