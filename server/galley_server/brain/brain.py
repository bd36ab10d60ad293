"""The brain of a server: one runner per session that has something to do, all in one task group."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Self

from galley_server.brain.runner import Runner, Workplace
from galley_server.log.store import Summaries, SummaryQuery
from galley_server.log.summary import Summary

_PAGE: Final = 500


class Brain:
    """`wake` is all that anybody needs to tell it: what is to be done stands in the log."""

    def __init__(self, workplace: Workplace, tasks: asyncio.TaskGroup) -> None:
        self._workplace = workplace
        self._tasks = tasks
        self._runners: dict[str, Runner] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def open(cls, workplace: Workplace) -> AsyncIterator[Self]:
        """Leaving ends every runner where it stands: the log lets the next server go on from there."""
        async with asyncio.TaskGroup() as tasks:
            brain = cls(workplace, tasks)
            try:
                yield brain
            finally:
                brain._closing = True
                for task in brain._running:
                    task.cancel()

    def wake(self, session_id: str) -> None:
        """Something was appended to the session. Returns at once; may be called any number of times."""
        if self._closing:
            return
        runner = self._runners.get(session_id)
        if runner is not None:
            runner.wake()
            return
        runner = self._runners[session_id] = Runner(session_id, self._workplace, on_rest=self._rested)
        task = self._tasks.create_task(runner.run(), name=f"runner {session_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def wake_unsettled(self, summaries: Summaries[Summary]) -> int:
        """Go on with whatever the server before this one left, and say how many sessions that are."""
        woken, query = 0, SummaryQuery(limit=_PAGE)
        while True:
            page = await summaries.summaries(query)
            for item in page.items:
                if not item.summary.settled:
                    self.wake(item.session_id)
                    woken += 1
            if page.next is None:
                return woken
            query = replace(query, after=page.next)

    @property
    def busy(self) -> int:
        """How many sessions have a runner now."""
        return len(self._runners)

    def _rested(self, session_id: str) -> None:
        self._runners.pop(session_id, None)
