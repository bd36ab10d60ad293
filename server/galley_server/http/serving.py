"""uvicorn as an async context manager: listening inside the block, ended in bounded time when it is left."""

import asyncio
import importlib.util
import os
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from galley_server.errors import ConfigError, ungrouped
from galley_server.http.protocol import Protocol

_BACKLOG: Final = 2048
# Longer than any client keeps an idle connection: whoever closes first loses the request that crosses the close, and
# a client that loses a POST sends it again.
_KEEP_ALIVE_S: Final = 120


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens. With `port=0` asked for, this is the port it got."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@asynccontextmanager
async def serve(
    app: ASGIApp, *, host: str, port: int, closing: asyncio.Event, uds: Path | None = None, grace_s: int = 3
) -> AsyncIterator[Address]:
    """Serve `app` on a TCP address and, if given, on a Unix socket only the owner may use.

    On leaving, `closing` is set, which ends every event stream; other requests have `grace_s` to finish. Signals are
    left alone. Raises ConfigError if the address cannot be had.
    """
    with ExitStack() as sockets:
        tcp = sockets.enter_context(await _bind(host, port))
        listening = [tcp]
        if uds is not None:
            listening.append(sockets.enter_context(_unix_socket(uds)))
        server = _Server(
            uvicorn.Config(
                app,
                http=Protocol,
                interface="asgi3",
                lifespan="off",
                proxy_headers=False,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=grace_s,
                backlog=_BACKLOG,
            )
        )
        async with _running(server, listening):
            try:
                yield Address(host, tcp.getsockname()[1])
            finally:
                closing.set()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; None leaves the choice to asyncio."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # not on every platform, so it is asked for only where it exists

    return uvloop.new_event_loop


@asynccontextmanager
async def _running(server: "_Server", sockets: list[socket.socket]) -> AsyncIterator[None]:
    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=sockets), name="uvicorn")
            await server.ready.wait()
            try:
                yield
            finally:
                server.should_exit = True
                await asyncio.wait([serving])
                server.abort()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def abort(self) -> None:
        """Drop the connections that outlived the grace, so that no half-closed transport is left to the loop."""
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()


async def _bind(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        # asyncio turns Nagle's algorithm off only on sockets that say they are TCP; with it, an answer whose headers
        # and body are two writes waits 40 ms for the client's acknowledgement.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --host and --port"
        ) from None


@contextmanager
def _unix_socket(path: Path) -> Generator[socket.socket, None, None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only one server runs in a home, so a socket found here was left by one that is dead.
            path.unlink(missing_ok=True)
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
