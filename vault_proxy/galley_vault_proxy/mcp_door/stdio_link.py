"""A server on stdio: one process in a sandbox, one message per line, every line bounded."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from anyio import to_thread

from galley_vault_proxy.config import StdioServer
from galley_vault_proxy.credentials.port import Injection
from galley_vault_proxy.mcp_door import stdio_cage
from galley_vault_proxy.mcp_door.beside import ungrouped
from galley_vault_proxy.mcp_door.failure import ServerFailed
from galley_vault_proxy.mcp_door.fairness import Breaths, aside
from galley_vault_proxy.mcp_door.jsonrpc import dump, read_from_server
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Pipe, Unasked, Wire
from galley_vault_proxy.redact import Patterns

_END_S: Final = 2.0
_LOGGED: Final = 500

logger = logging.getLogger(__name__)


@asynccontextmanager
async def run_stdio(
    server: StdioServer, injection: Injection | None, patterns: Patterns, limits: Limits, unasked: Unasked
) -> AsyncIterator[Pipe]:
    """Start the server; it ends with the block. Raises ServerFailed."""
    credential = None if injection is None else _bare(injection)
    command = await to_thread.run_sync(stdio_cage.command, server)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=stdio_cage.environment(server, credential),
            start_new_session=True,
            limit=limits.line,
        )
    except OSError as error:
        raise ServerFailed(
            f"the stdio server {server.name} cannot be started: {error.strerror}", reason="start_failed"
        ) from None
    logger.info("stdio server %s started as process %d", server.name, process.pid)
    pipe = Pipe(_Sender(process, server.name).send, unasked)
    spoke = asyncio.Event()
    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(_read(process, pipe, spoke, server.name), name=f"stdio-{server.name}"),
                tasks.create_task(_log(process, patterns, spoke, server.name), name=f"stdio-{server.name}-log"),
            ]
            try:
                yield pipe
            finally:
                pipe.lost(ServerFailed(f"the stdio server {server.name} was ended", reason="server_ended"))
                await _end(process)
                # Its pipes end with it; they are read to their end, or they would stay open.
                await asyncio.wait(readers, timeout=_END_S)
                for reader in readers:
                    reader.cancel()


class _Sender:
    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._turn = asyncio.Lock()

    async def send(self, message: Wire) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            async with self._turn:
                stdin.write(dump(message) + b"\n")
                await stdin.drain()
        except (OSError, RuntimeError):
            raise ServerFailed(f"the stdio server {self._name} has ended", reason="server_ended") from None


async def _read(process: asyncio.subprocess.Process, pipe: Pipe, spoke: asyncio.Event, name: str) -> None:
    assert process.stdout is not None
    why = "has ended"
    breaths = Breaths()
    try:
        while line := await process.stdout.readline():
            await breaths.breathe()
            try:
                message = await aside(read_from_server, line)
            except ValueError:
                # Many servers print a line or two that was meant for people.
                logger.debug("stdio server %s: a line that is no message", name)
                continue
            if isinstance(message, dict) and message.get("jsonrpc") == "2.0":
                spoke.set()
                pipe.arrived(message)
    except ValueError:
        why = "sent a line that is too long"
    pipe.lost(ServerFailed(f"the stdio server {name} {why}", reason="server_ended"))
    while await process.stdout.read(1 << 16):
        pass


async def _log(process: asyncio.subprocess.Process, patterns: Patterns, spoke: asyncio.Event, name: str) -> None:
    assert process.stderr is not None
    text = ""
    breaths = Breaths()
    with suppress(ValueError):
        while line := await process.stderr.readline():
            await breaths.breathe()
            text = patterns.redact(line.rstrip())[:_LOGGED].decode("utf-8", "replace")
            logger.debug("stdio server %s: %s", name, text)
    if text and not spoke.is_set():
        # Its own reason, or that of bubblewrap, which may make no sandbox here.
        logger.warning("stdio server %s said no word of MCP; the last that it wrote: %s", name, text)
    # What is longer than a line may be is not logged, but taken: a full pipe would stop the server.
    while await process.stderr.read(1 << 16):
        pass


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its input, as the protocol has it, and take it down if that does not end it."""
    if process.stdin is not None:
        process.stdin.close()
    for stop in (None, process.terminate, process.kill):
        if stop is not None:
            with suppress(ProcessLookupError):
                stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S / 4 if stop is None else _END_S):
                await asyncio.shield(process.wait())
                return


def _bare(injection: Injection) -> str:
    """The credential without the word that stands before it in a header."""
    value = injection.value.reveal()
    scheme, _, rest = value.partition(" ")
    return rest if rest and scheme.lower() in ("bearer", "token", "basic") else value
