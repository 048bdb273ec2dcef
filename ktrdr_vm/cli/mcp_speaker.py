"""`UID GID CHANNEL`: the process that speaks the Model Context Protocol. It has no privilege, and hands each call of a tool on.

Whoever starts `ktrdr-vm mcp` with root's rights lends them to what a client says. Here ends what reads a client's messages: it becomes
the person behind sudo before it reads the first one. CHANNEL is a socket; for each call one end of a pair of sockets goes over it.
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
    "Disposable virtual machines for coding agents. A profile of the workspace says what a sandbox may do. For more, "
    "ktrdr-escalate inside the sandbox asks, and only a person answers."
)


def main() -> None:
    uid, gid, channel = (int(word) for word in sys.argv[1:4])
    parent = os.getppid()
    server = make_server(functools.partial(ask, socket.socket(fileno=channel)))
    asyncio.run(_rehearse())
    # Not built yet when a message is first answered, and imported for it.
    import anyio._backends._asyncio  # noqa: F401
    import mcp.server.stdio  # noqa: F401

    if os.geteuid() == 0 and uid != 0:
        drop_privileges(uid, parent, gid=gid)
    server.run("stdio")


def make_server(ask: Callable[[bytes], Awaitable[bytes]]) -> Any:
    """The server, an MCPServer. `ask` takes the line of a request and returns that of its answer, as mcp_tools has them."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server: Any = MCPServer("ktrdr-vm", instructions=_INSTRUCTIONS, log_level="ERROR")

    def add(name: str, method: Callable[..., Any]) -> None:
        @functools.wraps(method)
        async def call(**arguments: Any) -> Any:
            request = json.dumps({"tool": name, "arguments": arguments}).encode() + b"\n"
            document = json.loads(await ask(request) or b"{}")
            if "value" not in document:
                raise ToolError(document.get("error", "the call was ended before it had an answer"))
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
    """The answer of the process that has the rights. Nothing when it ended without one. A call that is cancelled is given up there too."""
    reader, writer = await _connect(channel)
    answer = b""
    try:
        writer.write(request)
        # Refused before the request was read, the connection is reset after the answer.
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
    """Do once what imports modules when it is first done: a call that has an answer, one that has an error, and the list."""
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
    """HostError when the extra `mcp` is not installed."""
    try:
        import mcp.server.mcpserver  # noqa: F401
    except ImportError:
        raise HostError(
            "the package mcp is not installed", where="ktrdr-vm mcp", hint="pip install 'ktrdr-vm[mcp]', in the environment of ktrdr-vm"
        ) from None


if __name__ == "__main__":
    main()
