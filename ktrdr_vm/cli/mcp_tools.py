"""The tools of the MCP server, confined to one workspace. They run with the privileges of `apply`; the client is not
trusted.

A request is one line of JSON, `{"tool": NAME, "arguments": {…}}`, and its answer another, `{"value": …}` or `{"error":
TEXT}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ktrdr_vm.errors import KtrdrError, UsageError, keep_beginning
from ktrdr_vm.report.escape import escape_text

if TYPE_CHECKING:
    from ktrdr_vm.report.model import RunReport

# The longest request is a command for `execute`.
MAX_REQUEST = 1 << 20
_MOST_SECONDS = 86_400
# Characters. The problems of a profile are fewer.
_MOST_ERROR = 16_000


class Tools:
    """Each public method is a tool: a client sees its name, its parameters and its docstring.

    Profiles and gates are files in `workspace`, with no link in their path, or shipped; instances and runs are those of
    the workspace.
    """

    def __init__(self, workspace: Path) -> None:
        from ktrdr_vm.host.paths import find_home

        self._workspace = workspace
        self._home = find_home()

    def plan(self, profile: str, instance_id: str | None = None) -> dict[str, Any]:
        """Return what applying a profile would create, with its digest. Changes nothing."""
        from ktrdr_vm import api
        from ktrdr_vm.instance.belonging import require_free

        made = api.make_plan(self._find_profile(profile), workspace=self._workspace, instance_id=instance_id)
        require_free(self._home, made.identity.instance_id, self._workspace)
        return {"instance_id": made.identity.instance_id, "digest": made.digest, "profile": made.to_json()["profile"]}

    def apply(self, profile: str, instance_id: str | None = None, keep: bool = False) -> dict[str, Any]:
        """Run a profile: sandbox, workload, gates, evidence, teardown. Return its report. `keep` keeps the instance for
        later calls."""
        from ktrdr_vm import api
        from ktrdr_vm.instance.belonging import require_free

        path = self._find_profile(profile)
        name = api.make_plan(path, workspace=self._workspace, instance_id=instance_id).identity.instance_id
        require_free(self._home, name, self._workspace)
        report = api.apply(path, workspace=self._workspace, instance_id=name, keep="always" if keep else "never")
        return _show(report)

    def list_instances(self) -> list[dict[str, Any]]:
        """List the instances of this workspace."""
        from ktrdr_vm import api
        from ktrdr_vm.instance.belonging import holds_instance

        return [one for one in api.list_instances() if holds_instance(self._home, one["instance_id"], self._workspace)]

    def execute(self, instance_id: str, command: list[str], timeout: float = 600, expect: str = "") -> dict[str, Any]:
        """Run a command in a running instance, as its unprivileged user. `timeout` is in seconds.

        `expect`, a revision, refuses the call if what the instance may do has changed since.
        """
        with self._enter(instance_id) as instance:
            return dataclasses.asdict(instance.exec(command, timeout=timeout, expect=expect))

    def gate(self, instance_id: str, name: str, expect: str = "") -> dict[str, Any]:
        """Run one gate in a running instance: a name, or a playbook of the workspace. `expect` as for `execute`."""
        with self._enter(instance_id) as instance:
            return dataclasses.asdict(instance.gate(name, workspace=self._workspace, trusted=False, expect=expect))

    def push(
        self, instance_id: str, ref: str = "HEAD", branch: str = "", comments: str = "", expect: str = ""
    ) -> dict[str, Any]:
        """Push a commit of the workspace's repository, and review comments, into a running instance, by default to a
        new branch.

        Without `ref`, comments alone. A branch is only moved forward, and never under uncommitted changes. `expect` as
        for `execute`.
        """
        with self._enter(instance_id) as instance:
            return dataclasses.asdict(instance.push(ref, branch=branch, comments=comments, expect=expect))

    def revision(self, instance_id: str) -> dict[str, str]:
        """Return the revision of a running instance: its incarnation, plan and grants, for `expect`."""
        with self._enter(instance_id) as instance:
            return {"instance_id": instance_id, "revision": instance.find_revision()}

    def report(self, instance_id: str, run_id: str = "latest") -> dict[str, Any]:
        """Return the report of a run of this workspace."""
        from ktrdr_vm import api
        from ktrdr_vm.instance.belonging import require_run

        require_run(self._home, instance_id, run_id, self._workspace)
        return _show(api.read_report(instance_id, run_id))

    def escalations(self, instance_id: str) -> list[dict[str, Any]]:
        """List the escalations of an instance and their answers, which a person gives on the host."""
        with self._enter(instance_id) as instance:
            asked: list[dict[str, Any]] = instance.escalations()
            return asked

    def _enter(self, instance_id: str) -> Any:
        from ktrdr_vm import api
        from ktrdr_vm.instance.belonging import require_instance

        require_instance(self._home, instance_id, self._workspace)
        return api.LivingInstance(instance_id)

    def _find_profile(self, name: str) -> Path:
        from ktrdr_vm.host.beneath import find_place, open_file
        from ktrdr_vm.host.paths import find_shipped_profile

        place = find_place(self._workspace / name, (self._workspace,))
        if place.root == self._workspace:
            with contextlib.suppress(FileNotFoundError):
                os.close(open_file(place))
                return place.path
        shipped = find_shipped_profile(name)
        if shipped is None:
            raise UsageError(
                f"there is no profile {name}",
                where=str(self._workspace),
                hint="name a file in the workspace or a shipped profile",
            )
        return shipped


def _show(report: RunReport) -> dict[str, Any]:
    """The content of `report.json`."""
    from ktrdr_vm.report.json import render_report_json

    shown: dict[str, Any] = json.loads(render_report_json(report))
    return shown


TOOLS = {name: method for name, method in vars(Tools).items() if not name.startswith("_")}


def receive_request(connection: socket.socket) -> bytes:
    """One line, cut at MAX_REQUEST, so that a longer one is not valid."""
    found = b""
    while not found.endswith(b"\n") and len(found) < MAX_REQUEST and (piece := connection.recv(65536)):
        found += piece
    return found


def answer(workspace: Path, request: bytes) -> bytes:
    """The answer to one request. Every error is returned in it, as text without a traceback."""
    try:
        tool, arguments = _parse(request)
        return encode({"value": TOOLS[tool](Tools(workspace), **arguments)})
    except KtrdrError as error:
        return _refuse(str(error), error.hint)
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename or 'this host'}", "name another file, or try again")


def _refuse(what: str, hint: str) -> bytes:
    """What the client sent may be part of it, and has any length."""
    return encode(
        {"error": escape_text(f"{keep_beginning(what, _MOST_ERROR)}\nnext: {keep_beginning(hint, _MOST_ERROR)}")}
    )


def encode(document: dict[str, Any]) -> bytes:
    """The line of an answer. Half a surrogate pair, as in the name of a file of a guest that is not UTF-8, becomes `?`:
    the speaker could send no answer that contains one."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _parse(request: bytes) -> tuple[str, dict[str, Any]]:
    """The tool and its arguments, checked against the types that its method declares. UsageError for anything else."""
    import pydantic

    try:
        document = json.loads(request)
    except (ValueError, RecursionError):
        document = None
    if (
        not isinstance(document, dict)
        or document.keys() != {"tool", "arguments"}
        or not isinstance(document["tool"], str)
        or document["tool"] not in TOOLS
    ):
        raise UsageError("the request names no known tool", where="mcp", hint=f"the tools are {', '.join(TOOLS)}")
    hints = get_type_hints(TOOLS[document["tool"]])
    parameters = [one for one in inspect.signature(TOOLS[document["tool"]]).parameters.values() if one.name != "self"]
    fields: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is one.empty else one.default) for one in parameters
    }
    model = pydantic.create_model(
        document["tool"], __config__=pydantic.ConfigDict(extra="forbid", strict=True), **fields
    )
    try:
        arguments = model.model_validate(document["arguments"]).model_dump()
        told = "; ".join(f"{name}: {wrong}" for name, value in arguments.items() if (wrong := _find_wrong(value)))
    except pydantic.ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    if told:
        raise UsageError(
            f"the arguments of {document['tool']} are not valid: {told:.500}",
            where="mcp",
            hint="see the tool's input schema",
        )
    return document["tool"], arguments


def _find_wrong(value: object) -> str:
    """What no path, word or number of a tool can be, though its type is right; empty if it is none of it."""
    if isinstance(value, list):
        return next((wrong for one in value if (wrong := _find_wrong(one))), "")
    if isinstance(value, float) and not 0 < value <= _MOST_SECONDS:
        return f"must be more than 0 and at most {_MOST_SECONDS} seconds"
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        return "must be text without NUL and without half a surrogate pair"
    return ""
