"""Live tails: history joined with what comes, bounded, cancelled and closed; previews beside them."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from galley_server.errors import NotFound
from galley_server.log.log import Log
from galley_server.log.row import Preview, Row
from galley_server.log.tail import Bounds, Tail

from tests.contract.store_kit import Kit, draft, open_kit

pytestmark = pytest.mark.anyio

BOUNDS = Bounds(rows=8, row_bytes=100_000, previews=4)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async with open_kit(":memory:") as opened:
        yield opened


@pytest.fixture
async def log(kit: Kit) -> AsyncIterator[Log]:
    async with Log.open(kit.store, bounds=BOUNDS) as opened:
        yield opened


async def take(tail: Tail[Row], count: int) -> list[int]:
    async with asyncio.timeout(5):
        return [(await anext(tail)).seq for _ in range(count)]


async def settle(tail: Tail[Row]) -> None:
    """Let a tail read its history, so that it is live."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(tail)


def start(id: str = "sevt_p", type: str = "agent.message") -> Preview:
    return Preview(id, type, first=True, body=b"start")


def delta(text: bytes, id: str = "sevt_p", type: str = "agent.message") -> Preview:
    return Preview(id, type, first=False, body=text)


async def test_a_tail_has_the_history_and_then_what_comes(kit: Kit, log: Log) -> None:
    session_id = await kit.begin(draft(), draft())
    async with aclosing(log.follow(session_id)) as tail:
        assert await take(tail, 2) == [1, 2]
        await log.append(session_id, [draft(), draft()])
        assert await take(tail, 2) == [3, 4]


async def test_a_tail_begins_behind_its_cursor(kit: Kit, log: Log) -> None:
    session_id = await kit.begin(draft(), draft(id="sevt_here"), draft())
    async with aclosing(log.follow(session_id, after=await log.position(session_id, "sevt_here"))) as tail:
        assert await take(tail, 1) == [3]


async def test_a_cursor_ahead_of_the_log_waits_for_its_row(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id, after=2)) as tail:
        await settle(tail)
        await log.append(session_id, [draft(), draft()])
        assert await take(tail, 1) == [3]


async def test_a_reader_that_waits_is_woken(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id, after=1)) as tail, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(tail, 1))
        await asyncio.sleep(0)
        await log.append(session_id, [draft()])
        assert await waiting == [2]


async def test_readers_lose_and_repeat_nothing_under_concurrent_appends(kit: Kit) -> None:
    session_id = await kit.begin()
    async with Log.open(kit.store) as log:

        async def append(times: int) -> None:
            for _ in range(times):
                await log.append(session_id, [draft()])

        async def follow() -> list[int]:
            return await take(log.follow(session_id), 401)

        async with asyncio.TaskGroup() as tasks:
            readers = []
            for _ in range(8):
                tasks.create_task(append(50))
                readers.append(tasks.create_task(follow()))
        assert all(reader.result() == list(range(1, 402)) for reader in readers)


async def test_a_long_history_is_read_in_pages(kit: Kit, log: Log) -> None:
    session_id = await kit.begin(*(draft() for _ in range(1_300)))
    async with aclosing(log.follow(session_id)) as tail:
        assert await take(tail, 700) == list(range(1, 701))
        # More than its bound arrives while it is still in the past: that is no reason to end it.
        for _ in range(BOUNDS.rows + 3):
            await log.append(session_id, [draft()])
        assert await take(tail, 611) == list(range(701, 1_312))


async def test_asking_can_be_cancelled_and_repeated(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id)) as tail:
        assert await take(tail, 1) == [1]
        for number in range(2, 6):
            await settle(tail)
            await log.append(session_id, [draft()])
            assert await take(tail, 1) == [number]


async def test_a_reader_beyond_the_bound_reads_on_from_the_store(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id)) as tail:
        assert await take(tail, 1) == [1]
        await settle(tail)
        for _ in range(3 * BOUNDS.rows):
            await log.append(session_id, [draft()])
        assert await take(tail, 3 * BOUNDS.rows) == list(range(2, 3 * BOUNDS.rows + 2))
        await log.append(session_id, [draft()])
        assert await take(tail, 1) == [3 * BOUNDS.rows + 2]


async def test_one_append_may_have_more_rows_than_the_bound(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id, after=1)) as tail, asyncio.TaskGroup() as tasks:
        await settle(tail)
        reader = tasks.create_task(take(tail, 40))
        await log.append(session_id, [draft() for _ in range(20)])
        await log.append(session_id, [draft() for _ in range(20)])
        assert await reader == list(range(2, 42))


async def test_large_rows_beyond_the_bound_come_too(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.follow(session_id, after=1)
    await settle(tail)
    await log.append(session_id, [draft(text="x" * 60_000) for _ in range(3)])
    assert await take(tail, 3) == [2, 3, 4]


async def test_previews_of_a_reader_beyond_the_bound_keep_their_promises(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.listen(session_id, after=1)
    log.publish(session_id, start("sevt_old"))
    await log.append(session_id, [draft() for _ in range(BOUNDS.rows + 1)])
    log.publish(session_id, delta(b"a", "sevt_old"))
    log.publish(session_id, start("sevt_new"))
    async with asyncio.timeout(5):
        items = [await anext(tail) for _ in range(BOUNDS.rows + 2)]
    assert [item.seq for item in items[:-1] if isinstance(item, Row)] == list(range(2, BOUNDS.rows + 3))
    assert items[-1] == start("sevt_new")


async def test_a_single_row_beyond_the_bound_still_passes(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.follow(session_id, after=1)
    await settle(tail)
    await log.append(session_id, [draft(text="x" * 200_000)])
    assert await take(tail, 1) == [2]


async def test_a_slow_reader_does_not_hold_up_the_others(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    slow, quick = log.follow(session_id, after=1), log.follow(session_id, after=1)
    await settle(slow)
    for number in range(2, 30):
        await log.append(session_id, [draft()])
        assert await take(quick, 1) == [number]
    assert await take(slow, 28) == list(range(2, 30))


async def test_a_tail_ends_with_its_session(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.follow(session_id, after=1)
    await settle(tail)
    await log.append(session_id, [draft("session.deleted")])
    await log.delete(session_id, caller="key")
    assert [row.type async for row in tail] == ["session.deleted"]


async def test_a_session_that_is_not_there_cannot_be_followed(log: Log) -> None:
    with pytest.raises(NotFound):
        await anext(log.follow("sesn_unknown"))


async def test_closing_the_log_ends_every_tail(kit: Kit) -> None:
    session_id = await kit.begin()
    async with asyncio.TaskGroup() as tasks:
        async with Log.open(kit.store) as log:
            tail = log.follow(session_id, after=1)
            await settle(tail)
            waiting = tasks.create_task(anext(tail, None))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await waiting is None
    with pytest.raises(StopAsyncIteration):
        await anext(log.follow(session_id))


async def test_a_tail_let_go_of_is_forgotten(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.listen(session_id)
    assert log.wants_previews(session_id)
    del tail
    gc.collect()
    assert not log.wants_previews(session_id)
    await log.append(session_id, [draft()])
    assert log._tails == {}


async def test_a_closed_tail_is_forgotten(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    async with aclosing(log.follow(session_id)) as tail:
        await take(tail, 1)
    assert log._tails == {}


async def test_nobody_wants_previews_where_nobody_asked_for_them(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.follow(session_id)
    assert not log.wants_previews(session_id)
    log.publish(session_id, start())
    assert await take(tail, 1) == [1]
    await settle(tail)


async def test_previews_reach_who_listens_and_are_not_stored(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.previews(session_id)
    log.publish(session_id, start())
    log.publish(session_id, delta(b"a"))
    assert [(await anext(tail)).body for _ in range(2)] == [b"start", b"a"]
    assert len(await log.read(session_id)) == 1


async def test_a_listener_gets_rows_and_previews_in_the_order_they_happened(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.listen(session_id, after=1)
    await log.append(session_id, [draft("span.model_request_start")])
    log.publish(session_id, start())
    log.publish(session_id, delta(b"a"))
    await log.append(session_id, [draft("agent.message", id="sevt_p")])
    got = [item.type if isinstance(item, Row) else item.body for item in [await anext(tail) for _ in range(4)]]
    assert got == ["span.model_request_start", b"start", b"a", "agent.message"]


async def test_previews_of_an_event_already_in_the_history_are_not_delivered(kit: Kit) -> None:
    session_id = await kit.begin()
    async with Log.open(kit.store) as log:
        kit.store._watchers.clear()  # the notice is still on its way when the history is read
        tail = log.listen(session_id, after=1)
        log.publish(session_id, start())
        await kit.store.append(session_id, [draft("agent.message", id="sevt_p")])
        log.publish(session_id, start("sevt_next"))
        got = [item.id if isinstance(item, Row) else item.event_id for item in [await anext(tail) for _ in range(2)]]
    assert got == ["sevt_p", "sevt_next"]


async def test_only_the_types_asked_for_are_delivered(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.previews(session_id, {"agent.thinking"})
    log.publish(session_id, start("sevt_m", "agent.message"))
    log.publish(session_id, start("sevt_t", "agent.thinking"))
    assert (await anext(tail)).event_id == "sevt_t"


async def test_who_comes_in_the_middle_of_an_event_gets_none_of_it(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    log.publish(session_id, start())
    tail = log.previews(session_id)
    log.publish(session_id, delta(b"late"))
    log.publish(session_id, start("sevt_next"))
    assert (await anext(tail)).event_id == "sevt_next"


async def test_an_event_starts_once_and_nothing_follows_the_event_itself(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.previews(session_id)
    log.publish(session_id, start())
    log.publish(session_id, start())
    await log.append(session_id, [draft("agent.message", id="sevt_p")])
    log.publish(session_id, delta(b"too late"))
    log.publish(session_id, start("sevt_next"))
    assert [(await anext(tail)).event_id for _ in range(2)] == ["sevt_p", "sevt_next"]


async def test_a_slow_listener_loses_the_end_of_an_event_never_its_middle(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.previews(session_id)
    log.publish(session_id, start())
    for letter in b"abcdef":
        log.publish(session_id, delta(bytes([letter])))
    got = [(await anext(tail)).body for _ in range(BOUNDS.previews)]
    log.publish(session_id, delta(b"g"))
    log.publish(session_id, start("sevt_next"))
    assert got == [b"start", b"a", b"b", b"c"]
    assert (await anext(tail)).event_id == "sevt_next"


async def test_previews_never_push_rows_out(kit: Kit, log: Log) -> None:
    session_id = await kit.begin()
    tail = log.listen(session_id, after=1)
    log.publish(session_id, start())
    for _ in range(1_000):
        log.publish(session_id, delta(b"x"))
    await log.append(session_id, [draft()])
    items = [await anext(tail) for _ in range(BOUNDS.previews + 1)]
    assert isinstance(items[-1], Row)


async def test_a_cursor_of_another_session_is_not_found(kit: Kit, log: Log) -> None:
    await kit.begin(draft(id="sevt_theirs"))
    session_id = await kit.begin()
    assert await log.position(session_id, "row_7") == 7
    with pytest.raises(NotFound, match="sevt_theirs"):
        await log.position(session_id, "sevt_theirs")
