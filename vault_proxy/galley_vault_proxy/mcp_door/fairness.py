"""One server's flood is not everybody's wait: large work off the loop, and a turn for others between small pieces."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

_Out = TypeVar("_Out")

LARGE: Final = 1 << 16
"""From this size on, reading a message takes longer than others should wait."""

_AT_A_TIME: Final = 32
_THREADS: Final = 4
_limiter: RunVar[CapacityLimiter] = RunVar("mcp_door_large_messages")


async def aside(work: Callable[[bytes], _Out], data: bytes) -> _Out:
    """Do it at once if the data is small, on a thread if it is not."""
    if len(data) < LARGE:
        return work(data)
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    return await to_thread.run_sync(work, data, limiter=limiter)


class Breaths:
    """Counts what one reader takes, and lets the others have their turn after so many."""

    def __init__(self) -> None:
        self._taken = 0

    async def breathe(self) -> None:
        self._taken += 1
        if self._taken % _AT_A_TIME == 0:
            await asyncio.sleep(0)
