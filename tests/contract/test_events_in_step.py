"""The status that comes with events never runs ahead of them: a client that reads "idle" has seen why."""

from dataclasses import dataclass

import pytest
from galley_server.log.store import Summaries, SummaryPage, SummaryQuery
from galley_server.log.summary import Summary
from galley_server.runtime import clock
from galley_server.runtime.events import Events
from galley_server.runtime.idempotency import Once

from tests.contract.catalogue_kit import Kitchen, events, message

pytestmark = pytest.mark.anyio


@dataclass
class Overtaken:
    """Summaries of a session that moves on just before one is read."""

    kitchen: Kitchen

    async def summary(self, session_id: str) -> Summary:
        if (await self.kitchen.store.summary(session_id)).status != "idle" or await self.kitchen.waiting(session_id):
            await self.kitchen.idle(session_id)
        return await self.kitchen.store.summary(session_id)

    async def summaries(self, query: SummaryQuery) -> SummaryPage[Summary]:
        return await self.kitchen.store.summaries(query)

    async def was_deleted(self, session_id: str) -> bool:
        return await self.kitchen.store.was_deleted(session_id)

    async def rebuild_summaries(self) -> int:
        return await self.kitchen.store.rebuild_summaries()


async def test_a_turn_that_ends_while_it_is_read_is_read_to_its_end(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await kitchen.runtime.events.send(session.id, events(message()))
    summaries: Summaries[Summary] = Overtaken(kitchen)
    once = Once(kitchen.database)
    reading = Events(kitchen.log, summaries, once, files=kitchen.runtime.files, clock=clock.now)
    batch = await reading.wait(session.id, after=None)
    assert batch.status == "idle"
    assert batch.events[-1].type == "session.status_idle"
    assert not batch.has_more
