"""Connections to servers, kept apart: never does one caller's request travel on another's connection."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from galley_vault_proxy.mcp_door.visit import Principal
from galley_vault_proxy.netguard import GuardedTransport, Netguard, trusted

PoolKey: TypeAlias = tuple[Principal, str, str, int]
"""Who, which server, and which version of which credential: a rotated one gets new connections."""

_IDLE_S: Final = 120.0
_MOST: Final = 512
_CONNECTIONS: Final = 128


@dataclass(slots=True)
class _Pool:
    transport: GuardedTransport
    last_used: float
    users: int = 0


class Pools:
    def __init__(self, guard: Netguard, *, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._clock = clock
        self._tls: ssl.SSLContext = trusted()
        self._pools: dict[PoolKey, _Pool] = {}

    @asynccontextmanager
    async def use(self, key: PoolKey) -> AsyncIterator[GuardedTransport]:
        pool = self._pools.get(key)
        if pool is None:
            await self.sweep()
            pool = self._pools.get(key)
        if pool is None:
            transport = self._guard.transport(
                ssl_context=self._tls, max_connections=_CONNECTIONS, keepalive_s=_IDLE_S / 2
            )
            pool = self._pools[key] = _Pool(transport, self._clock())
        pool.users += 1
        try:
            yield pool.transport
        finally:
            pool.users -= 1
            pool.last_used = self._clock()

    async def sweep(self) -> None:
        """Close what nobody has used for a while, and the oldest of too many."""
        now = self._clock()
        idle = sorted((pool.last_used, key) for key, pool in self._pools.items() if not pool.users)
        too_many = max(0, len(self._pools) - _MOST + 1)
        gone = [key for index, (used, key) in enumerate(idle) if index < too_many or now - used > _IDLE_S]
        closing = [self._pools.pop(key) for key in gone]
        for pool in closing:
            await pool.transport.aclose()

    async def close(self) -> None:
        pools, self._pools = list(self._pools.values()), {}
        async with asyncio.TaskGroup() as tasks:
            for pool in pools:
                tasks.create_task(pool.transport.aclose())
