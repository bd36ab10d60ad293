"""HTTP to the vault proxy, over its Unix socket: its API with the service key, and its MCP door as a tunnel.

One place knows how its failures are told here: what the proxy refuses is refused in its words, and a proxy that does
not answer is Unavailable.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol, Self

import httpcore2
import httpx2

from galley_server.broker.place import Sockets, greeting
from galley_server.errors import Forbidden, InvalidRequest, NotFound, RequestError, Unavailable
from galley_server.runtime.ports import Passage, Passed
from galley_server.secret import Secret

BASE: Final = "http://localhost"
PATIENCE_S: Final = 20.0
"""How long a caller waits for a proxy that is still starting."""

_ANSWER_S: Final = 30.0
_CONNECT_S: Final = 5.0
_KEEP_S: Final = 60.0
_DOWN: Final = "the vault proxy does not answer; try again"


class Readiness(Protocol):
    """Whether there is a proxy to be asked."""

    async def ready(self, patience_s: float) -> None:
        """Return once there is. Raises Unavailable, which says why there is none."""
        ...


class Neighbour:
    """A vault proxy that runs by itself: whether it answers shows when it is asked."""

    async def ready(self, patience_s: float) -> None:
        return None


class ProxyClient:
    """Made by `open`."""

    def __init__(self, api: httpx2.AsyncClient, sockets: Sockets, key: Secret, readiness: Readiness) -> None:
        self._api = api
        self._sockets = sockets
        self._key = key
        self._readiness = readiness

    @classmethod
    @asynccontextmanager
    async def open(cls, sockets: Sockets, key: Secret, readiness: Readiness) -> AsyncIterator[Self]:
        transport = httpx2.AsyncHTTPTransport(
            uds=str(sockets.api), limits=httpx2.Limits(max_keepalive_connections=16, keepalive_expiry=_KEEP_S)
        )
        async with httpx2.AsyncClient(
            transport=transport,
            base_url=BASE,
            timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S),
            trust_env=False,
        ) as api:
            yield cls(api, sockets, key, readiness)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of the answer. Raises RequestError in the proxy's own words, Unavailable if it has none."""
        await self._readiness.ready(PATIENCE_S)
        with _translated():
            answer = await self._api.request(method, path, json=body, headers={"x-api-key": self._key.reveal()})
        if answer.status_code >= 400:
            raise _refusal(answer.status_code, answer.content)
        return answer.json()

    async def readiness(self) -> None:
        """Raises Unavailable, which says what the proxy lacks."""
        await self._readiness.ready(PATIENCE_S)
        with _translated():
            answer = await self._api.request("GET", "/readyz")
        if answer.status_code != 200:
            found = answer.json()
            raise Unavailable(f"the vault proxy is not ready: {found.get('part')}: {found.get('reason')}")

    @asynccontextmanager
    async def relay(self, passage: Passage) -> AsyncIterator[Passed]:
        """Pass a request on. Only one that came with this server's key goes with the proxy's. Raises Unavailable."""
        await self._readiness.ready(PATIENCE_S)
        target = passage.path.encode("ascii") + (b"?" + passage.query if passage.query else b"")
        headers = dict(passage.headers)
        if passage.trusted:
            headers["x-api-key"] = self._key.reveal()
        request = httpx2.Request(
            passage.method,
            httpx2.URL(BASE).copy_with(raw_path=target),
            headers=headers,
            content=passage.body,
            extensions={"timeout": httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S).as_dict()},
        )
        with _translated():
            answer = await self._api.send(request, stream=True)
            try:
                yield Passed(answer.status_code, tuple(answer.headers.raw), answer.aiter_raw())
            finally:
                await answer.aclose()

    @asynccontextmanager
    async def tunnel(self, tunnel: str) -> AsyncIterator[httpcore2.AsyncConnectionPool]:
        """Connections to the MCP door that count as this tunnel's.

        Made for one exchange and not kept: on a Unix socket a new one costs less than to remember which are whose.
        """
        backend = _Greeting(greeting(self._key, tunnel))
        async with httpcore2.AsyncConnectionPool(uds=str(self._sockets.api), network_backend=backend) as pool:
            yield pool

    def greeting(self, tunnel: str) -> bytes:
        return greeting(self._key, tunnel)

    @property
    def sockets(self) -> Sockets:
        return self._sockets

    async def ready(self) -> None:
        """Raises Unavailable."""
        await self._readiness.ready(PATIENCE_S)


class _Greeting(httpcore2.AsyncNetworkBackend):
    """Writes the greeting before anything else on every connection."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._dial = httpcore2.AnyIOBackend()

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._dial.connect_unix_socket(path, timeout=timeout)
        try:
            await stream.write(self._line, timeout=timeout)
        except (httpcore2.NetworkError, httpcore2.TimeoutException):
            # Nothing of a request has been sent, and an error of the connection says so.
            await stream.aclose()
            raise httpcore2.ConnectError("the vault proxy hung up") from None
        return stream

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("the vault proxy is on a Unix socket")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _refusal(status: int, body: bytes) -> RequestError:
    """The proxy's envelope is ours too, and its messages are written to be shown."""
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), (error.get("details") or {}).get("error_code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"the vault proxy answered with status {status}", None
    match status:
        case 400:
            return InvalidRequest(message, error_code=code)
        case 403:
            return Forbidden(message, error_code=code)
        case 404:
            return NotFound(message, error_code=code)
        case _:
            return Unavailable(f"the vault proxy: {message}", error_code=code)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError:
        raise Unavailable(_DOWN) from None
