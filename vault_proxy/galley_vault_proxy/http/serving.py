"""uvicorn as an async context manager: listening inside the block, ended in bounded time when it is left."""

import asyncio
import importlib.util
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.http.connection import MOST_WAITING, connection_class
from galley_vault_proxy.secret import Secret

BACKLOG: Final = 1024
_MOST_CONNECTIONS: Final = 4096
_FILES: Final = 1 << 16
# Longer than any client keeps an idle connection: whoever closes first loses the request that crosses the close.
_KEEP_ALIVE_S: Final = 120


@dataclass(frozen=True, slots=True)
class Address:
    """Where the proxy listens. With `port=0` asked for, this is the port it got."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    key: Secret,
    closing: asyncio.Event,
    uds: Path | None = None,
    grace_s: int = 2,
) -> AsyncIterator[Address]:
    """Serve `app` on a TCP address and, if given, on a Unix socket that only the owner may use. Else as `serve_on`."""
    with ExitStack() as sockets:
        tcp = sockets.enter_context(await bind(host, port))
        local = [] if uds is None else [sockets.enter_context(unix_socket(uds))]
        async with serve_on([tcp, *local], app, key=key, closing=closing, grace_s=grace_s):
            yield Address(host, tcp.getsockname()[1])


@asynccontextmanager
async def serve_on(
    listening: Sequence[socket.socket], app: ASGIApp, *, key: Secret, closing: asyncio.Event, grace_s: int = 2
) -> AsyncIterator[None]:
    """Serve `app` on sockets that listen.

    On leaving, `closing` is set, which ends every stream; other requests have `grace_s` to finish. Signals are left
    alone. Raises ConfigError if an address cannot be had.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=connection_class(key, most_waiting=_most_waiting()),
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
            backlog=BACKLOG,
        )
    )
    async with _running(server, list(listening)):
        try:
            yield
        finally:
            closing.set()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; None leaves the choice to asyncio."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # not on every platform, so it is asked for only where it exists

    return uvloop.new_event_loop


async def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError."""
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
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}; choose another") from None


@contextmanager
def unix_socket(path: Path) -> Generator[socket.socket, None, None]:
    """A listening Unix socket, 0600 from its first moment, removed at the end. Raises ConfigError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _take(path, listener)
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _take(path: Path, listener: socket.socket) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _answered(path):
        raise ConfigError(f"cannot listen on {path}: another program does")
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(before)
    listener.listen(BACKLOG)


def _answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True


def _most_waiting() -> int:
    """A quarter of what may be open: the rest is for what is being done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(16, min(MOST_WAITING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


@asynccontextmanager
async def _running(server: "_Server", sockets: list[socket.socket]) -> AsyncIterator[None]:
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=sockets), name="uvicorn")
            await server.ready.wait()
            try:
                yield
            finally:
                server.should_exit = True
                await asyncio.wait([serving])
                server.abort()
    except BaseExceptionGroup as group:
        # What the block raised leaves as it was: the group is an implementation detail.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


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
