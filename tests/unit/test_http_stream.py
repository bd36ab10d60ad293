"""An event stream as an ASGI answer: what goes out, when it ends, and what a slow or vanished reader costs."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
from galley_server.errors import Unavailable
from galley_server.http.sse import HEARTBEAT, OPENING
from galley_server.http.stream import EventStream, Pace
from starlette.types import Message

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http"}


@dataclass(frozen=True)
class Item:
    type: str
    body: bytes = b"{}"
    cursor: str | None = None


class Reader:
    """The client's end of an ASGI call."""

    def __init__(self, *, reads: bool = True) -> None:
        self.started = asyncio.Event()
        self.gone = asyncio.Event()
        self.ended = False
        self._reads = reads
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            return
        if message["body"] == OPENING:
            self.started.set()
            return
        if not self._reads:
            await asyncio.Event().wait()
        self.ended = not message["more_body"]
        if message["body"]:
            self._frames.put_nowait(message["body"])

    async def frame(self) -> bytes:
        return await self._frames.get()

    def frames(self) -> list[bytes]:
        return [self._frames.get_nowait() for _ in range(self._frames.qsize())]


class Source:
    """What the log would give: some items, then silence."""

    def __init__(self, *items: Item, then: Exception | None = None, ends: bool = False) -> None:
        self._items = items
        self._then = then
        self._ends = ends
        self.closed = False
        self.given = 0

    async def items(self) -> AsyncGenerator[Item]:
        try:
            for item in self._items:
                self.given += 1
                yield item
            if self._then is not None:
                raise self._then
            if not self._ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True


def stream(source: Source, *, closing: asyncio.Event | None = None, pace: Pace | None = None) -> EventStream:
    return EventStream(source.items(), closing=closing or asyncio.Event(), request_id="req_1", pace=pace or Pace())


async def run(answer: EventStream, reader: Reader) -> None:
    async with asyncio.timeout(5):
        await answer(SCOPE, reader.receive, reader.send)


async def test_items_become_frames_and_the_end_of_items_ends_the_stream() -> None:
    source = Source(Item("user.message", b'{"n":1}', "row_1"), Item("event_start", b'{"n":2}'), ends=True)
    reader = Reader()
    await run(stream(source), reader)
    assert b"".join(reader.frames()) == (
        b'event: user.message\nid: row_1\ndata: {"n":1}\n\nevent: event_start\ndata: {"n":2}\n\n'
    )
    assert reader.ended


async def test_items_that_come_at_once_leave_as_one_piece() -> None:
    reader = Reader()
    await run(stream(Source(*(Item(f"t{number}") for number in range(5)), ends=True)), reader)
    assert len(reader.frames()) == 1


async def test_what_waits_for_a_slow_reader_is_bounded() -> None:
    large = Item("a", b"x" * 40_000)
    source, reader, closing = Source(*[large] * 100), Reader(reads=False), asyncio.Event()
    answer = stream(source, closing=closing)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(SCOPE, reader.receive, reader.send))
        await reader.started.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.given < 10
        closing.set()


async def test_the_stream_opens_before_its_first_event() -> None:
    reader, closing = Reader(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(Source(), closing=closing)(SCOPE, reader.receive, reader.send))
        await reader.started.wait()
        assert reader.frames() == []
        closing.set()


async def test_a_deleted_session_ends_the_stream() -> None:
    reader = Reader()
    await run(stream(Source(Item("session.deleted", cursor="row_1"), Item("never"))), reader)
    assert len(reader.frames()) == 1
    assert reader.ended


async def test_the_servers_end_ends_the_stream_whole() -> None:
    source, reader, closing = Source(Item("a")), Reader(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(source, closing=closing)(SCOPE, reader.receive, reader.send))
        await reader.frame()
        closing.set()
    assert reader.ended
    assert source.closed


async def test_a_client_that_hangs_up_frees_the_source() -> None:
    source, reader = Source(Item("a")), Reader()
    reader.gone.set()
    await run(stream(source), reader)
    assert source.closed


async def test_silence_is_broken_by_heartbeats() -> None:
    reader, closing = Reader(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        answer = stream(Source(), closing=closing, pace=Pace(heartbeat_s=0.01))
        tasks.create_task(answer(SCOPE, reader.receive, reader.send))
        assert await reader.frame() == HEARTBEAT
        assert await reader.frame() == HEARTBEAT
        closing.set()


async def test_a_reader_that_takes_nothing_is_let_go() -> None:
    source, reader = Source(Item("a")), Reader(reads=False)
    await run(stream(source, pace=Pace(heartbeat_s=0.01, stall_s=0.02)), reader)
    assert source.closed
    assert not reader.ended


async def test_a_silent_stream_lets_go_of_a_reader_that_takes_no_heartbeat() -> None:
    source, reader = Source(), Reader(reads=False)
    await run(stream(source, pace=Pace(heartbeat_s=0.01, stall_s=0.02)), reader)
    assert source.closed


async def test_a_failing_store_is_told_as_an_error_event() -> None:
    reader = Reader()
    await run(stream(Source(then=Unavailable("the disk is full"))), reader)
    (only,) = reader.frames()
    assert only.startswith(
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"the disk is full"'
    )


async def test_a_defect_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    with caplog.at_level(logging.ERROR):
        await run(stream(Source(then=ZeroDivisionError("secret detail"))), reader)
    (only,) = reader.frames()
    assert b"secret detail" not in only
    assert b'"request_id":"req_1"' in only
    assert "secret detail" in caplog.text


async def test_cancelling_the_answer_frees_the_source() -> None:
    source, reader = Source(Item("a")), Reader()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(stream(source)(SCOPE, reader.receive, reader.send))
        await reader.frame()
        answering.cancel()
    assert source.closed
