"""Work that goes on to its end once begun, whoever stops waiting for it: its answer may be a thing to clean up."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

from galley_vault_proxy.errors import ProxyError, StoreUnavailable

T = TypeVar("T")

_CLOSING_S: Final = 2.0

logger = logging.getLogger(__name__)


class Errands:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        async with asyncio.TaskGroup() as tasks:
            errands = cls(tasks)
            try:
                yield errands
            finally:
                await errands._close()

    async def run(
        self, work: Coroutine[Any, Any, T], *, name: str, unclaimed: Callable[[T], Awaitable[None]] | None = None
    ) -> T:
        """Wait for the work, which goes on when this is cancelled. `unclaimed` gets a result that came too late."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def carry() -> None:
            try:
                value = await work
                if result.done() and unclaimed is not None:
                    await unclaimed(value)
            except asyncio.CancelledError:
                if not result.done():
                    result.set_exception(StoreUnavailable("the proxy is being stopped"))
                raise
            except Exception as error:  # the task's boundary: it goes to whoever waits, or to the log
                if not result.done():
                    result.set_exception(error)
                elif not isinstance(error, ProxyError):
                    logger.exception("%s failed after its caller had left", name)
            else:
                if not result.done():
                    result.set_result(value)

        task = self._tasks.create_task(carry(), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # Cancelled here, the future is done, and `carry` sees that nobody waits.
        return await result

    async def _close(self) -> None:
        """What is on its way gets a moment to end."""
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSING_S)
        for task in self._running:
            task.cancel()
