"""A held session: its epoch, its folded state kept current, and appends fenced by the epoch."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self, TypeVar

from galley_server.errors import NotFound
from galley_server.log.log import Log
from galley_server.log.row import Draft
from galley_server.log.state import SessionState, fold

T = TypeVar("T")


class Lease:
    """While it is open, `state` holds every row of the session as soon as it is durable, the clients' among them."""

    def __init__(self, log: Log, session_id: str, epoch: int, state: SessionState) -> None:
        self.session_id = session_id
        self.state = state
        self._log = log
        self._epoch = epoch
        self._changed = asyncio.Event()
        self._interruptible: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def take(cls, log: Log, session_id: str) -> AsyncIterator[Self]:
        """Hold the session until the block ends. Raises NotFound if it does not exist (any more).

        An append of the block raises LeaseLost once somebody else has taken the lease.
        """
        epoch = await log.take_lease(session_id)
        lease = cls(log, session_id, epoch, fold(await log.read(session_id)))
        async with asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(lease._follow(), name=f"fold {session_id}")
            try:
                yield lease
            finally:
                follower.cancel()

    async def append(self, rows: Sequence[Draft], *, expected: int | None = None) -> None:
        """Make rows durable and fold them in. `expected` as in the store: raises AppendConflict."""
        stored = await self._log.append(self.session_id, rows, fence=self._epoch, expected=expected)
        if stored[0].seq == self.state.seq + 1:
            for row in stored:
                self.state.apply(row)
            self._tell()
        while self.state.seq < stored[-1].seq:
            await self._changed.wait()

    async def interruptible(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run `work` (which must not raise), or give None once the session has an interrupt to apply.

        Only what is given here is ever cancelled by an interrupt: an append never is.
        """
        if self.state.interrupts:
            work.close()
            return None
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work)
            self._interruptible.add(task)
            try:
                await asyncio.wait([task])
            finally:
                self._interruptible.discard(task)
        return None if task.cancelled() else task.result()

    async def news(self, timeout_s: float) -> bool:
        """Wait for a row. False if none came in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def is_current(self) -> bool:
        """Whether the state holds everything that the log holds now."""
        return (await self._log.head(self.session_id)).seq == self.state.seq

    async def _follow(self) -> None:
        async with aclosing(self._log.follow(self.session_id, after=self.state.seq)) as tail:
            async for row in tail:
                if row.seq <= self.state.seq:
                    continue
                self.state.apply(row)
                if row.type == "user.interrupt":
                    for task in self._interruptible:
                        task.cancel()
                self._tell()
        raise NotFound(f"{self.session_id} was deleted")

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
