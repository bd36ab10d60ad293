"""Tries whether stdio servers could be run here at all, which takes a sandbox; for `galley-vault-proxy doctor`."""

import asyncio
from collections.abc import Iterable

from galley_vault_proxy.config import StdioServer
from galley_vault_proxy.mcp_door import stdio_cage
from galley_vault_proxy.mcp_door.failure import ServerFailed

FIX = (
    "let the user that the proxy runs as make user namespaces, and mount its own /proc; "
    "for containers and systemd: deploy/credential-broker/README.md"
)
_PATIENCE_S = 10.0


async def try_stdio(servers: Iterable[StdioServer]) -> str | None:
    """What keeps one of them from being started, if anything does. Runs `true` in each one's sandbox, and no server."""
    for server in servers:
        try:
            command = stdio_cage.command(server)
        except ServerFailed as error:
            return str(error)
        # Everything up to where the server's own words begin.
        words = [*command[: command.index("--") + 1], "/bin/true"]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=stdio_cage.environment(server, None),
        )
        try:
            async with asyncio.timeout(_PATIENCE_S):
                _, complaint = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"no sandbox for {server.name} within {_PATIENCE_S:g} s"
        if process.returncode != 0:
            lines = complaint.decode(errors="replace").splitlines() or ["no reason given"]
            return f"no sandbox for {server.name}: {lines[0][:300]}"
    return None
