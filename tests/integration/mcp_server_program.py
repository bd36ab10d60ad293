"""A server for the MCP transport tests, as a process of its own: `GALLEY_HOME`, and a port to serve HTTP as well.

It writes one line to `starts` in its home each time it starts, and one to `effects` for each call of `count`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from galley_server.home import home_of, socket_to_bind
from galley_server.mcp.gate import Gate
from galley_server.mcp.http import HTTPEndpoint
from galley_server.mcp.server import build_server
from galley_server.mcp.socket import SocketEndpoint
from galley_server.secret import Secret
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.applications import Starlette

API_KEY = "test-key"


def tool_server(home: Path) -> MCPServer[dict[str, Any]]:
    server = build_server()

    @server.tool()
    async def echo(text: str) -> str:
        return text

    @server.tool()
    async def pid() -> int:
        return os.getpid()

    @server.tool()
    async def repeat(text: str, times: int) -> str:
        return text * times

    @server.tool()
    async def count() -> str:
        """An effect that shows, and an answer that never comes."""
        with (home / "effects").open("a") as effects:
            effects.write("x\n")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            (home / "cancelled").touch()
            raise
        return "never"

    @server.tool()
    async def crash() -> str:
        raise ValueError("secret detail")

    @server.tool()
    async def announce(ctx: Context[Any, Any]) -> str:
        await ctx.notify_tools_changed()
        return "announced"

    return server


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, endpoint: HTTPEndpoint) -> None:
        super().__init__(config)
        self._endpoint = endpoint
        self.ready = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: Any = None) -> None:
        await self._endpoint.close()
        await super().shutdown(sockets)


def http_server(server: MCPServer[Any], port: int, **options: Any) -> tuple[Server, HTTPEndpoint]:
    endpoint = HTTPEndpoint(server, Gate.for_bind("127.0.0.1", Secret(API_KEY)), **options)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with endpoint.running():
            yield

    app = Starlette(routes=endpoint.routes(), lifespan=lifespan)
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5)
    return Server(config, endpoint), endpoint


async def main() -> None:
    home = home_of(os.environ)
    server = tool_server(home)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(SocketEndpoint.open(server, socket_to_bind(home)))
        with (home / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\n")
        if len(sys.argv) > 1:
            await http_server(server, int(sys.argv[1]))[0].serve()
        else:
            with suppress(TimeoutError):  # ends by itself, so that a failed test leaves nothing behind
                await asyncio.wait_for(asyncio.Event().wait(), 60)


if __name__ == "__main__":
    asyncio.run(main())
