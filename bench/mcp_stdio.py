"""A tool call through `galley mcp` (shim, Unix socket, server) against the same tool of the bare SDK on stdio.

The SDK's server sits in the child process itself; ours is a process further away. Target: at most 2 times its time.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from galley_server.home import socket_to_bind
from galley_server.mcp.server import build_server
from galley_server.mcp.socket import SocketEndpoint
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

ROUNDS = 6
CALLS = 100
TARGET = 2.0
SHIM = ("-m", "galley_server.mcp.shim")
BARE = """
from mcp.server import MCPServer
server = MCPServer("bare")
@server.tool()
async def echo(text: str) -> str:
    return text
server.run("stdio")
"""


async def serve(home: Path) -> None:
    server = build_server()

    @server.tool()
    async def echo(text: str) -> str:
        return text

    async with SocketEndpoint.open(server, socket_to_bind(home)):
        print("ready", flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def galley_server(home: Path) -> AsyncIterator[dict[str, str]]:
    """A server of `home` with an echo tool, as another process; the environment in which its shim finds it."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(home), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield {**os.environ, "GALLEY_HOME": str(home)}
    finally:
        process.terminate()
        await process.wait()


def connected(arguments: tuple[str, ...], environ: dict[str, str], mode: str) -> Client:
    return Client(
        stdio_client(StdioServerParameters(command=sys.executable, args=list(arguments), env=environ)), mode=mode
    )


async def call_ms(client: Client) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        await client.call_tool("echo", {"text": "hello"})
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def measure(environ: dict[str, str], mode: str) -> float:
    async with connected(("-c", BARE), environ, mode) as bare, connected(SHIM, environ, mode) as galley:
        await call_ms(bare), await call_ms(galley)  # warm
        rounds = [(await call_ms(bare), await call_ms(galley)) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / theirs for theirs, ours in rounds)
    bare_ms, galley_ms = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"   {mode:<10} bare SDK {bare_ms:.2f} ms, galley mcp {galley_ms:.2f} ms: {ratio:.2f} times (at most {TARGET})"
    )
    return ratio


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with galley_server(Path(folder)) as environ:
            ratios = [await measure(environ, mode) for mode in ("2026-07-28", "legacy")]
    return 0 if max(ratios) <= TARGET else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(Path(sys.argv[1])))
    raise SystemExit(asyncio.run(main()))
