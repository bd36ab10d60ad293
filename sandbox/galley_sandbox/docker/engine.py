"""The engine's API: docker-py in threads, its errors as ours, and exec streams, for which docker-py has no place."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from galley_sandbox.docker.failures import NO_ENGINE
from galley_sandbox.errors import SandboxLost, SandboxUnavailable
from galley_sandbox.stream import send
from galley_sandbox.threads import to_end

if TYPE_CHECKING:
    from docker import DockerClient

T = TypeVar("T")

DEFAULT_URL = "unix:///var/run/docker.sock"
_ANSWER_WITHIN_S = 60
_STREAM_HEADER = 8
_LONGEST_ANSWER = 64 * 1024
_READ = 256 * 1024


class Library(Protocol):
    """What galley_sandbox.docker.library has; loaded when it is first needed."""

    def client_at(self, url: str) -> "DockerClient": ...

    def translated(self, what: str) -> AbstractContextManager[None]: ...


class Engine:
    """One engine, over a Unix socket or plain TCP."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._url = urlsplit(url)
        self._opened: tuple[Library, DockerClient] | None = None
        self._opening = asyncio.Lock()

    async def do(self, what: str, work: "Callable[[DockerClient], T]") -> T:
        """Run blocking `work` in a thread. A cancellation waits for it, so that what it made can be removed."""
        library, client = await self._open()
        with library.translated(what):
            return await to_end(work, client)

    async def _open(self) -> "tuple[Library, DockerClient]":
        async with self._opening:
            if self._opened is None:
                if self._url.scheme not in ("unix", "tcp"):
                    raise SandboxUnavailable(
                        f"The engine's address {self._url.geturl()!r} is neither unix:// nor tcp://.",
                        fix="set DOCKER_HOST to the engine's Unix socket, for instance " + DEFAULT_URL,
                    )
                if self._url.scheme == "unix" and not await asyncio.to_thread(Path(self._url.path).is_socket):
                    message = f"Docker: there is no engine's socket at {self._url.path}."
                    raise SandboxUnavailable(message, fix=NO_ENGINE)
                library: Library = await to_end(import_module, "galley_sandbox.docker.library")
                with library.translated("be reached"):
                    self._opened = library, await to_end(library.client_at, self._url.geturl())
            return self._opened

    async def close(self) -> None:
        async with self._opening:
            if self._opened is not None:
                await to_end(self._opened[1].close)
                self._opened = None

    @asynccontextmanager
    async def exec_stream(self, container: str, command: list[str]) -> AsyncIterator["ExecStream"]:
        """Start `command` in a running container, as its root, and be joined to its input and output."""

        def create(client: "DockerClient") -> str:
            made = client.api.exec_create(container, command, stdin=True, stdout=True, stderr=False, user="0")
            return str(made["Id"])

        exec_id = await self.do("start a bridge to the hand", create)
        reader, writer = await self._connect()
        try:
            body = json.dumps({"Detach": False, "Tty": False}).encode()
            writer.write(
                f"POST /exec/{quote(exec_id)}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
                f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await _expect_upgrade(reader)
            yield ExecStream(reader, writer)
        finally:
            # Nothing waits for a last flush: a hand that does not read must not hold us up.
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            if self._url.scheme == "unix":
                return await asyncio.open_unix_connection(self._url.path, limit=_LONGEST_ANSWER)
            return await asyncio.open_connection(self._url.hostname, self._url.port or 2375, limit=_LONGEST_ANSWER)
        except OSError as e:
            raise SandboxLost(f"The Docker engine does not answer: {e.strerror}.") from e


async def _expect_upgrade(reader: asyncio.StreamReader) -> None:
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as e:
        raise SandboxLost("The Docker engine did not open the stream to the hand.") from e
    status = head.split(b"\r\n", 1)[0]
    # 101 says that the connection is now a stream; older engines say 200 and mean the same.
    if b" 101 " not in status and b" 200 " not in status:
        raise SandboxLost(f"The Docker engine refused the stream to the hand: {status.decode(errors='replace')}.")


class ExecStream:
    """The input and output of a command, out of the engine's envelope: a header before each piece of output."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left = 0

    async def read(self) -> bytes:
        while self._left == 0:
            try:
                header = await self._reader.readexactly(_STREAM_HEADER)
            except asyncio.IncompleteReadError:
                return b""
            self._left = int.from_bytes(header[4:])
        data = await self._reader.read(min(self._left, _READ))
        self._left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        await send(self._writer, data)
