"""Connections to servers, kept apart: never does one caller's request travel on another's connection."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

import httpx2

from galley_vault_proxy.errors import AddressRefused, Unreachable
from galley_vault_proxy.hosts import normal_host
from galley_vault_proxy.mcp_door.failure import ServerFailed
from galley_vault_proxy.mcp_door.headers import RawHeaders
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.upstream import Connection, ConnectionLost, Response, UnsendableHeader, request_of
from galley_vault_proxy.mcp_door.visit import Principal
from galley_vault_proxy.netguard import Netguard, trusted

PoolKey: TypeAlias = tuple[Principal, str, str, int]
"""Who, which server, and which version of which credential: a rotated one gets new connections."""

_IDLE_S: Final = 60.0
_MOST: Final = 512
_CONNECTIONS: Final = 128


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads."""

    tls: bool
    host: str
    port: int
    authority: bytes
    target: bytes


@dataclass(slots=True)
class _Pool:
    last_used: float
    idle: list[Connection] = field(default_factory=list)
    users: int = 0


class Pools:
    def __init__(self, guard: Netguard, limits: Limits, *, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._limits = limits
        self._clock = clock
        self._tls: ssl.SSLContext = trusted()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._pools: dict[PoolKey, _Pool] = {}

    @asynccontextmanager
    async def asked(
        self, key: PoolKey, verb: str, headers: RawHeaders, body: bytes | None, silence_s: float | None
    ) -> AsyncIterator[Response]:
        """Send a request; the answer, whose body is read inside the block. Raises ServerFailed.

        What is left of the answer at the end of the block is cut off, with the connection.
        """
        pool = self._pool(key)
        pool.users += 1
        connection: Connection | None = None
        try:
            if pool.users > _CONNECTIONS:
                raise ServerFailed("too many requests to this server are under way", reason="too_many")
            place, request = _prepared(key[1], verb, headers, body)
            connection = _kept(pool) or await self._opened(place)
            yield await _answer(connection, request, self._limits.send_s, silence_s)
        finally:
            pool.users -= 1
            pool.last_used = self._clock()
            if connection is not None:
                self._back(pool, connection)

    def close(self) -> None:
        for pool in self._pools.values():
            for connection in pool.idle:
                connection.close()
        self._pools.clear()

    def _pool(self, key: PoolKey) -> _Pool:
        pool = self._pools.get(key)
        if pool is None:
            self._sweep()
            pool = self._pools[key] = _Pool(self._clock())
        return pool

    def _sweep(self) -> None:
        """Forget what nobody has used for a while, and the oldest of too many."""
        now = self._clock()
        idle = sorted((pool.last_used, key) for key, pool in self._pools.items() if not pool.users)
        too_many = max(0, len(self._pools) - _MOST + 1)
        for index, (used, key) in enumerate(idle):
            if index < too_many or now - used > _IDLE_S:
                for connection in self._pools.pop(key).idle:
                    connection.close()

    def _back(self, pool: _Pool, connection: Connection) -> None:
        if connection.reusable:
            connection.idle_for(_IDLE_S)
            pool.idle.append(connection)
        else:
            connection.close()

    async def _opened(self, place: Place) -> Connection:
        try:
            return await self._guard.dial(
                Connection,
                place.host,
                place.port,
                tls=self._tls if place.tls else None,
                timeout_s=self._limits.connect_s,
            )
        except AddressRefused as error:
            raise ServerFailed(error.message, reason="address_refused") from None
        except Unreachable:
            raise ServerFailed("the server cannot be reached", reason="connect_failed") from None


def _prepared(url: str, verb: str, headers: RawHeaders, body: bytes | None) -> tuple[Place, bytes]:
    try:
        place = _place(url)
        return place, request_of(verb, place.target, [(b"host", place.authority), *headers], body)
    except (UnsendableHeader, ValueError, httpx2.InvalidURL):
        raise ServerFailed("the server cannot be asked that", reason="bad_request") from None


def _kept(pool: _Pool) -> Connection | None:
    while pool.idle:
        connection = pool.idle.pop()
        if connection.reusable:
            return connection
    return None


async def _answer(connection: Connection, request: bytes, send_s: float, silence_s: float | None) -> Response:
    try:
        return await connection.ask(request, send_s=send_s, silence_s=silence_s)
    except ConnectionLost as lost:
        raise ServerFailed(str(lost), reason="connection_lost") from None
    except TimeoutError:
        raise ServerFailed("the server does not answer in time", reason="no_answer_in_time") from None


@lru_cache(maxsize=1024)
def _place(url: str) -> Place:
    """Raises ValueError, InvalidURL."""
    parts = httpx2.URL(url)
    if parts.scheme not in ("http", "https") or not parts.raw_host:
        raise ValueError("not a URL of the web")
    tls = parts.scheme == "https"
    return Place(tls, normal_host(parts.host), parts.port or (443 if tls else 80), parts.netloc, parts.raw_path or b"/")
