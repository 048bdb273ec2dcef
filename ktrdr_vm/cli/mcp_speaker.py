"""`UID GID CHANNEL`: the process for the Model Context Protocol. It has no privileges, and forwards each call of a
tool.

`ktrdr-vm mcp` runs as root, and the messages of its client are not trusted. Therefore this process, which reads them,
becomes the caller of sudo before it reads the first one. CHANNEL is a socket over which one end of a socket pair is
sent for each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from ktrdr_vm.cli.mcp_tools import TOOLS
from ktrdr_vm.errors import HostError
from ktrdr_vm.host.privileges import drop_privileges

_INSTRUCTIONS = (
    "Disposable virtual machines for coding agents. A profile in the workspace specifies what a sandbox may do. To"
    " request more, run ktrdr-escalate in the sandbox; only a person can approve a request."
)


def main() -> None:
    uid, gid, channel = (int(word) for word in sys.argv[1:4])
    parent = os.getppid()
    server = make_server(functools.partial(ask, socket.socket(fileno=channel)))
    asyncio.run(_rehearse())
    # Imported now, because the first answer would import it without the permission to read it.
    import anyio._backends._asyncio  # noqa: F401
    import mcp.server.stdio  # noqa: F401

    if os.geteuid() == 0 and uid != 0:
        drop_privileges(uid, parent, gid=gid)
    server.run("stdio")


def make_server(ask: Callable[[bytes], Awaitable[bytes]]) -> Any:
    """The MCPServer. `ask` takes the line of a request and returns the line of its answer, in the format of
    mcp_tools."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server: Any = MCPServer("ktrdr-vm", instructions=_INSTRUCTIONS, log_level="ERROR")

    def add(name: str, method: Callable[..., Any]) -> None:
        @functools.wraps(method)
        async def call(**arguments: Any) -> Any:
            request = json.dumps({"tool": name, "arguments": arguments}).encode() + b"\n"
            document = json.loads(await ask(request) or b"{}")
            if "value" not in document:
                raise ToolError(document.get("error", "the call ended without an answer"))
            return document["value"]

        signature = inspect.signature(method, eval_str=True)
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[one for one in signature.parameters.values() if one.name != "self"]
        )
        server.tool()(call)

    for name, method in TOOLS.items():
        add(name, method)
    return server


async def ask(channel: socket.socket, request: bytes) -> bytes:
    """The answer of the privileged process; empty if it ended without one. Cancelling this cancels the call there
    too."""
    reader, writer = await _connect(channel)
    answer = b""
    try:
        writer.write(request)
        # If the call was refused before its request was read, the connection is reset after the answer.
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                answer += piece
        return answer
    finally:
        writer.close()


async def _connect(channel: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(channel, [b"\0"], [theirs.fileno()])
    return await asyncio.open_unix_connection(sock=ours)


async def _rehearse() -> None:
    """Run every code path once that imports modules: a call with an answer, one with an error, and the list."""
    from mcp import Client

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with Client(make_server(functools.partial(ask, ours))) as client:
        await client.list_tools()
        for answer in (b'{"value": []}', b'{"error": "a rehearsal"}'):
            call = asyncio.create_task(client.call_tool("list_instances", {}))
            _, [descriptor], _, _ = await asyncio.to_thread(socket.recv_fds, theirs, 1, 1)
            with socket.socket(fileno=descriptor) as connection:
                await asyncio.to_thread(connection.recv, 1 << 16)
                connection.sendall(answer)
            await call
        await client.call_tool("report", {})
    ours.close()
    theirs.close()


def require_package() -> None:
    """HostError if the extra `mcp` is not installed."""
    try:
        import mcp.server.mcpserver  # noqa: F401
    except ImportError:
        raise HostError(
            "the package mcp is not installed",
            where="ktrdr-vm mcp",
            hint="run `pip install 'ktrdr-vm[mcp]'` in the environment of ktrdr-vm",
        ) from None


if __name__ == "__main__":
    main()
