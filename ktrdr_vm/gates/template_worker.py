"""`UID SECONDS`: the process that renders templates of playbooks, which may come from an untrusted branch.

It imports its modules, leaves the network, becomes `UID` (0: no change), and then reads one request after another: a
length of four bytes and JSON, answered in the same form. A request that needs more than SECONDS of CPU time ends the
process; one that needs more memory is an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.template_values import decode_value, encode_value
from ktrdr_vm.gates.templating import Scope, Templar
from ktrdr_vm.host.privileges import lower_limit

# Bytes of address space.
_MEMORY = 1 << 30
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


class _PathWanted(TemplateError):
    """A test needs the kind of a path, which this process cannot read."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def main() -> None:
    uid, limit = int(sys.argv[1]), float(sys.argv[2])
    templar = Templar()
    _rehearse(templar)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if uid:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise SystemExit("cannot leave the network namespace")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # Again, because a change of the user clears it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_FSIZE, 0),
    ):
        lower_limit(what, most)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (request := read_message(source)) is not None:
        # Without a handler the signal ends the process, also during an expression.
        signal.setitimer(signal.ITIMER_VIRTUAL, limit)
        reply = answer(templar, request)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        write_message(sink, reply)


def answer(templar: Templar, request: dict[str, Any]) -> dict[str, Any]:
    """`value` of the request's `verb`, or `error`; `path` if the request must be repeated with the kind of this path in
    `paths`."""
    paths: dict[str, str] = request.get("paths", {})

    def probe(path: str) -> str:
        if path not in paths:
            raise _PathWanted(path)
        return paths[path]

    scope = Scope(tuple((decode_value(layer), bool(is_template)) for layer, is_template in request["layers"]), probe)
    value = decode_value(request["value"])
    try:
        if request["verb"] == "render":
            return {"value": encode_value(templar.render(value, scope, **request["options"]))}
        if request["verb"] == "condition":
            return {"value": templar.condition(value, scope)}
        return {"value": templar.render_file(value, scope, **request["options"])}
    except _PathWanted as wanted:
        return {"path": wanted.path}
    except TemplateError as error:
        return {"error": str(error)}
    except (MemoryError, RecursionError):
        return {"error": "a template requires too much memory, or is nested too deeply"}


def read_message(source: BinaryIO) -> dict[str, Any] | None:
    """The next request; None at the end."""
    head = source.read(4)
    if len(head) < 4:
        return None
    found: dict[str, Any] = json.loads(source.read(int.from_bytes(head, "big")))
    return found


def write_message(sink: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sink.write(len(data).to_bytes(4, "big") + data)
    sink.flush()


def _rehearse(templar: Templar) -> None:
    """Run every code path once that imports modules, because the later user may not be able to read them."""
    scope = Scope((({"a": "b"}, True),))
    for text in (
        "{{ a | regex_search('b') }}{{ [1] | sum }}",
        "{% for one in [1] %}{{ one }}{% endfor %}",
        "{{ '%s' | format(1) }}",
        "{{ none.x }}",
        "{{ 'a b' | wordwrap(1) }}{{ 'a' | to_yaml | from_yaml }}",
        "{{ ('2026' | to_datetime('%Y')).year }}{{ 'a' | striptags }}",
        "{{ 'http://[::1]/' | urlsplit('hostname') }}",
    ):
        try:
            templar.render(text, scope)
        except TemplateError:
            continue
    for encoding in ("utf-8", "ascii", "latin-1", "idna", "unicode_escape"):
        "a".encode(encoding)
