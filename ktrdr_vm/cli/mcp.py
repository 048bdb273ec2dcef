"""`mcp`: the safe part of the program for an agent's host, over the Model Context Protocol. Approval is not in it, and never will be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ktrdr_vm.cli.options import folder


@click.command()
@click.option("--workspace", type=folder, default=Path(), help="The only repository it works on.")
def mcp(workspace: Path) -> None:
    """Serve plan, apply, exec, gate, report and the state of escalations on standard input and output."""
    make_server(workspace.resolve()).run("stdio")


def make_server(workspace: Path) -> Any:
    """The server, an MCPServer, whose package is an extra. `workspace` is resolved.

    Profiles and gates are files of `workspace`, without a link on the way, or shipped; instances and runs are those made for it.
    """
    import contextlib
    import dataclasses
    import functools
    import json
    import os
    from collections.abc import Callable

    from ktrdr_vm.errors import HostError, KtrdrError, UsageError

    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        raise HostError(
            "the package mcp is not installed", where="ktrdr-vm mcp", hint="pip install 'ktrdr-vm[mcp]', in the environment of ktrdr-vm"
        ) from None

    from ktrdr_vm import api
    from ktrdr_vm.host.beneath import find_place, open_file
    from ktrdr_vm.host.paths import find_home, find_shipped
    from ktrdr_vm.instance.belonging import holds_instance, require_free, require_instance, require_run
    from ktrdr_vm.report.json import render_report_json

    server: Any = MCPServer(
        "ktrdr-vm",
        instructions="Disposable virtual machines for coding agents. A profile of the workspace says what a sandbox may do; what it may "
        "not, it can ask for with ktrdr-escalate inside, and only a person answers.",
    )

    def tool(act: Callable[..., Any]) -> Callable[..., Any]:
        """Errors as text for the caller, and never a trace."""

        @functools.wraps(act)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            try:
                return act(*arguments, **named)
            except KtrdrError as error:
                raise ToolError(f"{error}\nnext: {error.hint}") from None
            except OSError as error:
                raise ToolError(f"{error.filename or 'this host'}: {error.strerror or error}") from None

        registered: Callable[..., Any] = server.tool()(wrapped)
        return registered

    def find_profile(name: str) -> Path:
        place = find_place(workspace / name, (workspace,))
        if place.root == workspace:
            with contextlib.suppress(FileNotFoundError):
                os.close(open_file(place))
                return place.path
        shipped = find_shipped("profiles", name if name.endswith(".yaml") else f"{name}.yaml") if "/" not in name else None
        if shipped is None:
            raise UsageError(f"there is no profile {name}", where=str(workspace), hint="name a file of the workspace, or a shipped profile")
        return shipped

    def living(instance_id: str) -> api.LivingInstance:
        require_instance(find_home(), instance_id, workspace)
        return api.LivingInstance(instance_id)

    @tool
    def plan(profile: str, instance_id: str | None = None) -> dict[str, Any]:
        """What applying a profile would make, with its digest. Touches nothing."""
        made = api.make_plan(find_profile(profile), workspace=workspace, instance_id=instance_id)
        require_free(find_home(), made.identity.instance_id, workspace)
        return {"instance_id": made.identity.instance_id, "digest": made.digest, "profile": made.to_json()["profile"]}

    @tool
    def apply(profile: str, instance_id: str | None = None, keep: bool = False) -> dict[str, Any]:
        """One whole run: sandbox, workload, gates, evidence, destroy. Returns its report. `keep` leaves the instance for exec and gate."""
        path = find_profile(profile)
        name = api.make_plan(path, workspace=workspace, instance_id=instance_id).identity.instance_id
        require_free(find_home(), name, workspace)
        report = api.apply(path, workspace=workspace, instance_id=name, keep="always" if keep else "never")
        shown: dict[str, Any] = json.loads(render_report_json(report))
        return shown

    @tool
    def list_instances() -> list[dict[str, Any]]:
        """The instances of this workspace."""
        return [one for one in api.list_instances() if holds_instance(find_home(), one["instance_id"], workspace)]

    @tool
    def execute(instance_id: str, command: list[str], timeout: float = 600) -> dict[str, Any]:
        """Run a command inside an instance that is there, as its unprivileged user."""
        with living(instance_id) as instance:
            return dataclasses.asdict(instance.exec(command, timeout=timeout))

    @tool
    def gate(instance_id: str, name: str) -> dict[str, Any]:
        """Run one gate against an instance that is there: a name, or a playbook of the workspace."""
        with living(instance_id) as instance:
            return dataclasses.asdict(instance.gate(name, workspace=workspace, trusted=False))

    @tool
    def report(instance_id: str, run_id: str = "latest") -> dict[str, Any]:
        """The report of a run of this workspace."""
        require_run(find_home(), instance_id, run_id, workspace)
        return api.read_report(instance_id, run_id)

    @tool
    def escalations(instance_id: str) -> list[dict[str, Any]]:
        """What an instance has asked for, and the answers. They are given by a person, on the host."""
        with living(instance_id) as instance:
            return instance.escalations()

    return server
