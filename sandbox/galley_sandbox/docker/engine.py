"""The engine's API: docker-py in threads, its errors as ours, and exec streams, for which docker-py has no place."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

import requests
from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound

from galley_sandbox.errors import SandboxError, SandboxLost, SandboxUnavailable
from galley_sandbox.threads import to_end

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_URL = "unix:///var/run/docker.sock"
_OLDEST_API = "1.41"
_ANSWER_WITHIN_S = 60
_GREET_WITHIN_S = 10
_STREAM_HEADER = 8
_LONGEST_ANSWER = 64 * 1024
_READ = 256 * 1024


class Missing(SandboxError):
    """The engine knows no such thing."""


class Conflict(SandboxError):
    """The engine cannot do that to the thing as it is now."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """docker-py's errors, and those it lets through of the library below it, as ours."""
    try:
        yield
    except NotFound as e:
        raise Missing(f"Docker could not {what}: {e.explanation or e}") from e
    except APIError as e:
        if e.status_code == 409:
            raise Conflict(f"Docker could not {what}: {e.explanation or e}") from e
        raise SandboxUnavailable(
            f"Docker could not {what}: {e.explanation or e}", fix="see the engine's log, and `galley doctor`"
        ) from e
    except (DockerException, requests.RequestException, OSError) as e:
        raise SandboxUnavailable(
            f"Docker could not {what}: the engine does not answer ({type(e).__name__}).",
            fix="install Docker and start it, and make sure that this user may use its socket",
        ) from e


class Engine:
    """One engine, over a Unix socket or plain TCP."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._url = urlsplit(url)
        self._client: DockerClient | None = None
        self._opening = asyncio.Lock()

    async def do(self, what: str, work: Callable[[DockerClient], T]) -> T:
        """Run blocking `work` in a thread. A cancellation waits for it, so that what it made can be removed."""
        client = await self._open()
        with translated(what):
            return await to_end(work, client)

    async def _open(self) -> DockerClient:
        async with self._opening:
            if self._client is None:
                if self._url.scheme not in ("unix", "tcp"):
                    raise SandboxUnavailable(
                        f"The engine's address {self._url.geturl()!r} is neither unix:// nor tcp://.",
                        fix="set DOCKER_HOST to the engine's Unix socket, for instance " + DEFAULT_URL,
                    )
                with translated("be reached"):
                    self._client = await to_end(_client, self._url.geturl())
            return self._client

    async def close(self) -> None:
        async with self._opening:
            if self._client is not None:
                await to_end(self._client.close)
                self._client = None

    @asynccontextmanager
    async def exec_stream(self, container: str, command: list[str]) -> AsyncIterator["ExecStream"]:
        """Start `command` in a running container, as its root, and be joined to its input and output."""

        def create(client: DockerClient) -> str:
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


def _client(url: str) -> DockerClient:
    address = urlsplit(url)
    if address.scheme == "unix":
        # docker-py leaks the socket that it could not connect.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(address.path)
    # docker-py can ask for the version by itself, but then leaks its connections if there is no good answer.
    with closing(DockerClient(base_url=url, version=_OLDEST_API, timeout=_GREET_WITHIN_S)) as first:
        version = first.version(api_version=False).get("ApiVersion")
    if not isinstance(version, str):
        raise DockerException("what answers is not a Docker engine")
    return DockerClient(base_url=url, version=version, timeout=_ANSWER_WITHIN_S)


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
        self._writer.write(data)
        await self._writer.drain()
