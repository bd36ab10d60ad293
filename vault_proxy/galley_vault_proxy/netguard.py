"""The one way out: resolve once, judge every address, connect to what was judged and to nothing else.

A name that is allowed may lead to a private address, may lead elsewhere the second time it is asked (rebinding), or
may be left by a redirect. So the address that was judged is the one that is dialled, and TLS and Host keep the name.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

import anyio
import httpcore2
import httpx2
from anyio import to_thread

from galley_vault_proxy.addresses import Address, Net, refused
from galley_vault_proxy.dialing import AsyncioBackend
from galley_vault_proxy.errors import AddressRefused, ConfigError, Unreachable
from galley_vault_proxy.hosts import normal_host

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host as text. Raises OSError when there are none."""

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)
_Opened = TypeVar("_Opened")

CONNECT_S: Final = 10.0
_RESOLVE_S: Final = 5.0
_LOOKUPS: Final = 32
_MOST_ADDRESSES: Final = 8
_MAX_URL: Final = 2048


class Netguard:
    """Opens connections to the outside. `opened`: private networks that the operator opens."""

    def __init__(self, opened: Iterable[Net] = (), *, resolver: Resolver | None = None) -> None:
        self._opened = tuple(opened)
        self._resolve = resolver or SystemResolver()

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Return where a host may be connected to. `host` in its normal spelling.

        Raises AddressRefused when it has addresses and none may be, Unreachable when it has none.
        """
        found = await self._lookup(host, port)
        allowed = [address for address in found if not refused(address, self._opened)]
        if not allowed:
            raise AddressRefused(
                f"{host} leads to a private or reserved address, which is refused; "
                "the operator opens networks with GALLEY_PROXY_ALLOW_NETS",
                error_code="address_refused",
            )
        return allowed[:_MOST_ADDRESSES]

    async def connect(
        self, host: str, port: int, *, timeout_s: float = CONNECT_S, limit: int = 1 << 16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TCP connection. Raises AddressRefused, Unreachable."""
        return await self._first(
            host, port, timeout_s, lambda address: asyncio.open_connection(address, port, limit=limit)
        )

    async def dial(
        self,
        factory: Callable[[], _Protocol],
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        timeout_s: float = CONNECT_S,
    ) -> _Protocol:
        """Open a connection for a protocol, with TLS that asks for the name. Raises AddressRefused, Unreachable."""
        loop = asyncio.get_running_loop()
        name = host if tls is not None else None
        _, protocol = await self._first(
            host,
            port,
            timeout_s,
            lambda address: loop.create_connection(factory, address, port, ssl=tls, server_hostname=name),
        )
        return protocol

    def transport(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 100,
        keepalive_s: float = 60.0,
    ) -> "GuardedTransport":
        """A transport for `httpx2.AsyncClient(transport=..., trust_env=False, follow_redirects=False)`."""
        return GuardedTransport(self, ssl_context=ssl_context, max_connections=max_connections, keepalive_s=keepalive_s)

    async def _first(
        self, host: str, port: int, timeout_s: float, attempt: Callable[[str], Awaitable[_Opened]]
    ) -> _Opened:
        """What the first address gives that accepts a connection; the time left is shared by those still to try."""
        addresses = await self.addresses(host, port)
        try:
            async with asyncio.timeout(timeout_s):
                for index, address in enumerate(addresses):
                    try:
                        async with asyncio.timeout(timeout_s / (len(addresses) - index)):
                            return await attempt(str(address))
                    except OSError:  # a timeout is one too
                        continue
        except TimeoutError:
            pass
        raise Unreachable(f"{host} port {port} does not accept a connection", error_code="connect_failed")

    async def _lookup(self, host: str, port: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(_RESOLVE_S):
                found = await self._resolve(host, port)
        except OSError:
            raise Unreachable(f"{host} does not resolve", error_code="name_not_resolved") from None
        addresses = list(dict.fromkeys(ipaddress.ip_address(text) for text in found))
        if not addresses:
            raise Unreachable(f"{host} does not resolve", error_code="name_not_resolved")
        return addresses


class SystemResolver:
    """The machine's own resolver, on threads that nothing else waits for."""

    def __init__(self) -> None:
        self._limit: anyio.CapacityLimiter | None = None

    async def __call__(self, host: str, port: int) -> list[str]:
        if self._limit is None:
            self._limit = anyio.CapacityLimiter(_LOOKUPS)
        found = await to_thread.run_sync(_getaddrinfo, host, port, abandon_on_cancel=True, limiter=self._limit)
        return [str(entry[4][0]) for entry in found]


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Connections are pooled by origin; each was judged when it was opened."""

    def __init__(
        self, guard: Netguard, *, ssl_context: ssl.SSLContext | None, max_connections: int, keepalive_s: float
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or trusted(),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=keepalive_s,
            network_backend=_Backend(guard),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        asked = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated():
            answer = await self._pool.handle_async_request(asked)
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Stream(answer),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for part in self._answer.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Backend(httpcore2.AsyncNetworkBackend):
    """Dials what the guard has judged. The pool does TLS afterwards, with the name."""

    def __init__(self, guard: Netguard) -> None:
        self._guard = guard
        self._dial = AsyncioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(normal_host(host), port)
        except Unreachable as error:
            raise httpcore2.ConnectError(error.message) from None
        except ValueError:
            raise httpcore2.ConnectError(f"{host!r} is not a host name") from None
        last: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        patience = CONNECT_S if timeout is None else timeout
        for address in addresses:
            try:
                return await self._dial.connect_tcp(
                    str(address), port, patience / len(addresses), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last or httpcore2.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("a Unix socket is not the outside")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def trusted() -> ssl.SSLContext:
    """What the certificates of upstream servers are checked against, at every way out. Raises ConfigError.

    The system's authorities, or those in SSL_CERT_FILE. Reading them takes longer than a whole call: keep it.
    """
    try:
        return httpx2.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        reason = "there is no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"SSL_CERT_FILE: the certificate authorities cannot be read: {reason}") from None


def redirect_target(source: httpx2.URL, location: str) -> httpx2.URL:
    """Where a redirect leads, if it may be followed at all: the caller then decides on it as on any other URL.

    Raises AddressRefused for anything but http and https, a step from https down to http, or a URL with a password.
    """
    try:
        if len(location) > _MAX_URL:
            raise ValueError("too long")
        target = source.join(location)
        normal_host(target.host)
    except (ValueError, httpx2.InvalidURL):
        raise _bad_redirect(source, "to something that is not a URL") from None
    if target.scheme not in ("http", "https"):
        raise _bad_redirect(source, "to another protocol")
    if source.scheme == "https" and target.scheme != "https":
        raise _bad_redirect(source, "from https to http")
    if target.userinfo:
        raise _bad_redirect(source, "to a URL with a user name")
    return target


def _bad_redirect(source: httpx2.URL, what: str) -> AddressRefused:
    return AddressRefused(f"{source.host} redirects {what}: refused", error_code="redirect_refused")


def _getaddrinfo(host: str, port: int) -> list[tuple[object, object, object, object, tuple[str | int | bytes, ...]]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


# httpcore2 and httpx2 name the same things alike.
_SAME_NAME: Final = {
    kind: getattr(httpx2, kind.__name__)
    for kind in (
        httpcore2.ConnectTimeout,
        httpcore2.ReadTimeout,
        httpcore2.WriteTimeout,
        httpcore2.PoolTimeout,
        httpcore2.TimeoutException,
        httpcore2.ConnectError,
        httpcore2.ReadError,
        httpcore2.WriteError,
        httpcore2.NetworkError,
        httpcore2.ProxyError,
        httpcore2.UnsupportedProtocol,
        httpcore2.LocalProtocolError,
        httpcore2.RemoteProtocolError,
        httpcore2.ProtocolError,
    )
}


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except tuple(_SAME_NAME) as error:
        for kind, ours in _SAME_NAME.items():
            if isinstance(error, kind):
                raise ours(str(error)) from error
        raise
