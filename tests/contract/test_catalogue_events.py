"""Events: what is taken, how it is listed, streamed and waited for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from anthropic.types.beta import sessions as sdk
from galley_server.brain.drafts import processed
from galley_server.errors import InvalidRequest, NotFound
from galley_server.log.projection import ShownEvent
from galley_server.log.row import Preview
from galley_server.runtime.clock import floor
from galley_server.runtime.events import StreamItem
from galley_server.wire import events as ev
from galley_server.wire.query import EventQuery
from galley_server.wire.session import Session
from galley_server.wire.validation import take

from tests.contract.catalogue_kit import Kitchen, events, message, row
from tests.contract.sdk_strict import nulls, validate

pytestmark = pytest.mark.anyio


def confirm(call_id: str, result: str = "allow", **more: object) -> dict[str, object]:
    return {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": result, **more}


def show(kind: str, file_id: str) -> dict[str, object]:
    return {"type": "user.message", "content": [{"type": kind, "source": {"type": "file", "file_id": file_id}}]}


def answer(call_id: str) -> dict[str, object]:
    return {"type": "user.custom_tool_result", "custom_tool_use_id": call_id, "content": []}


async def send(kitchen: Kitchen, session: Session, *sent: dict[str, object]) -> tuple[ShownEvent, ...]:
    return await kitchen.runtime.events.send(session.id, events(*sent))


async def listed(kitchen: Kitchen, session: Session, **query: object) -> list[str]:
    found = await kitchen.runtime.events.list(session.id, take(EventQuery, query))
    return [event.event_id for event in found.data]


async def mark(kitchen: Kitchen, session: Session, *event_ids: str) -> None:
    await kitchen.log.append(session.id, processed(event_ids))


async def agent_message(kitchen: Kitchen, session: Session, number: int) -> str:
    event = ev.AgentMessage(id=f"sevt_agent{number}", content=())
    await kitchen.log.append(session.id, [row(event)])
    return event.id


async def upto(items: AsyncGenerator[StreamItem], count: int) -> list[StreamItem]:
    async with asyncio.timeout(5):
        return [await anext(items) for _ in range(count)]


async def test_what_is_sent_is_echoed_with_ids_in_the_sdks_shape(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    file = await kitchen.file()
    rich: dict[str, object] = {
        "type": "user.message",
        "content": [
            {"type": "text", "text": "look"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
            {"type": "document", "title": None, "source": {"type": "file", "file_id": file.id}},
        ],
    }
    call_id = await kitchen.call(session.id, custom=True)
    sent = await send(kitchen, session, rich, {"type": "user.interrupt"}, answer(call_id))
    body = b'{"data":[' + b",".join(event.body for event in sent) + b"]}"
    validate(sdk.BetaManagedAgentsSendSessionEvents, body)
    assert [event.processed_at is None for event in sent] == [True, True, False]
    assert all(set(nulls(event.body.decode())) <= {".processed_at"} for event in sent)
    assert kitchen.notes.woken == [session.id]


async def test_all_events_of_a_request_are_taken_or_none(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    with pytest.raises(InvalidRequest, match=r"^events\.1\.tool_use_id: "):
        await send(kitchen, session, message(), confirm("sevt_x"))
    assert await listed(kitchen, session) == []
    assert kitchen.notes.woken == []


async def test_many_answers_at_once_are_all_taken(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    calls = [await kitchen.call(session.id, custom=True) for _ in range(40)]
    await kitchen.idle(session.id, ev.RequiresAction(event_ids=tuple(calls)))
    async with asyncio.TaskGroup() as tasks:
        for call_id in calls:
            tasks.create_task(send(kitchen, session, answer(call_id)))
    assert len(await listed(kitchen, session, types=["user.custom_tool_result"])) == 40
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "running"


async def test_an_unknown_session_takes_no_events(kitchen: Kitchen) -> None:
    with pytest.raises(NotFound):
        await kitchen.runtime.events.send("sesn_x", events(message()))
    with pytest.raises(NotFound):
        await kitchen.runtime.events.list("sesn_x", EventQuery())
    with pytest.raises(NotFound):
        await kitchen.runtime.events.stream("sesn_x")


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("image", "file_x", "File file_x was not found"),
        ("image", None, "is text/csv; a model can be shown PNG, JPEG, GIF or WebP"),
    ],
)
async def test_a_file_in_a_message_must_be_there_and_showable(
    kitchen: Kitchen, kind: str, source: str | None, says: str
) -> None:
    session = await kitchen.session()
    file_id = source or (await kitchen.file()).id
    with pytest.raises((InvalidRequest, NotFound), match=r"^events\.0\.content\.0\.source\.file_id: ") as refused:
        await send(kitchen, session, show(kind, file_id))
    assert says in refused.value.message


async def test_a_confirmation_answers_a_call_once(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    call_id = await kitchen.call(session.id)
    await send(kitchen, session, confirm(call_id, "deny", deny_message="no"))
    with pytest.raises(InvalidRequest, match="was already answered"):
        await send(kitchen, session, confirm(call_id))


async def test_of_two_answers_at_once_one_is_taken(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    call_id = await kitchen.call(session.id, custom=True)
    ends = await asyncio.gather(*(send(kitchen, session, answer(call_id)) for _ in range(4)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["InvalidRequest"] * 3 + ["tuple"]


async def test_the_last_answer_to_a_blocked_session_has_it_running_at_once(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    first, second = await kitchen.call(session.id), await kitchen.call(session.id, custom=True)
    await kitchen.idle(session.id, ev.RequiresAction(event_ids=(first, second)))
    await send(kitchen, session, confirm(first))
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "idle"
    await send(kitchen, session, answer(second))
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "running"
    assert (await kitchen.log.read(session.id))[-2].type == "session.status_running"


async def test_a_message_to_a_blocked_session_waits_and_leaves_it_blocked(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    call_id = await kitchen.call(session.id)
    await kitchen.idle(session.id, ev.RequiresAction(event_ids=(call_id,)))
    (sent,) = await send(kitchen, session, message())
    assert sent.processed_at is None
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "idle"


async def test_a_list_shows_each_event_once_in_the_order_of_processing_and_waiting_ones_last(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    (one,) = await send(kitchen, session, message("1"))
    (two,) = await send(kitchen, session, message("2"))
    said = await agent_message(kitchen, session, 1)
    await mark(kitchen, session, two.event_id)
    last = await agent_message(kitchen, session, 2)
    expected = [said, two.event_id, last, one.event_id]
    assert await listed(kitchen, session) == expected
    assert await listed(kitchen, session, order="desc") == expected[::-1]
    assert await listed(kitchen, session, types=("user.message",)) == [two.event_id, one.event_id]
    assert await listed(kitchen, session, types=("agent.message",)) == [said, last]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_of_a_list_join_without_gap_or_repetition(kitchen: Kitchen, order: str, limit: int) -> None:
    session = await kitchen.session()
    waiting = [event.event_id for event in await send(kitchen, session, *[message(str(n)) for n in range(5)])]
    for number in range(3):
        await agent_message(kitchen, session, number)
        await mark(kitchen, session, waiting[number])
    whole = await listed(kitchen, session, order=order)
    assert len(whole) == 8
    seen, page = [], None
    while True:
        query = take(EventQuery, {"order": order, "limit": limit, "page": page})
        found = await kitchen.runtime.events.list(session.id, query)
        seen += [event.event_id for event in found.data]
        page = found.next_page
        if page is None:
            break
    assert seen == whole


async def test_a_long_session_is_listed_across_many_reads(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    (sent,) = await send(kitchen, session, message())
    made = [row(ev.AgentMessage(id=f"sevt_a{number}", content=())) for number in range(1203)]
    await kitchen.log.append(session.id, [*made, *processed([sent.event_id])])
    first = await kitchen.runtime.events.list(session.id, EventQuery())
    assert len(first.data) == 1000
    rest = await listed(kitchen, session, page=first.next_page)
    assert (len(rest), rest[-1]) == (204, sent.event_id)
    assert (await listed(kitchen, session, order="desc", limit=1)) == [sent.event_id]
    assert (await listed(kitchen, session, types=("user.message",))) == [sent.event_id]


async def test_a_cursor_of_one_order_is_refused_in_the_other(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await send(kitchen, session, message(), message())
    page = (await kitchen.runtime.events.list(session.id, EventQuery(limit=1))).next_page
    with pytest.raises(InvalidRequest, match=r"^page: this cursor belongs to the order 'asc'"):
        await listed(kitchen, session, order="desc", page=page)


async def test_ranges_are_about_the_time_of_processing(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    (one,) = await send(kitchen, session, message())
    assert await listed(kitchen, session, created_at_gte=session.created_at) == []
    await mark(kitchen, session, one.event_id)
    (shown,) = (await kitchen.runtime.events.list(session.id, EventQuery())).data
    assert shown.processed_at is not None
    at = floor(shown.processed_at)
    assert await listed(kitchen, session, created_at_gte=at, created_at_lte=at) == [one.event_id]
    assert await listed(kitchen, session, created_at_gt=at) == []
    assert await listed(kitchen, session, created_at_lt=at) == []


async def test_a_list_goes_on_behind_any_cursor(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    (one,) = await send(kitchen, session, message("1"))
    said = await agent_message(kitchen, session, 1)
    await mark(kitchen, session, one.event_id)
    (two,) = await send(kitchen, session, message("2"))
    assert await listed(kitchen, session, after_event_id=one.event_id) == [said, one.event_id, two.event_id]
    assert await listed(kitchen, session, after_event_id=said) == [one.event_id, two.event_id]
    assert await listed(kitchen, session, after_event_id=two.cursor) == []
    assert await listed(kitchen, session, after_event_id=said, order="desc") == [two.event_id, one.event_id]
    with pytest.raises(InvalidRequest, match=r"^after_event_id: 'sevt_x' is neither"):
        await listed(kitchen, session, after_event_id="sevt_x")


async def test_a_stream_shows_what_comes_and_a_waiting_event_twice(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await send(kitchen, session, message("before"))
    async with aclosing(await kitchen.runtime.events.stream(session.id)) as items:
        (sent,) = await send(kitchen, session, message())
        await mark(kitchen, session, sent.event_id)
        first, second = await upto(items, 2)
    assert (first, b'"processed_at":null' in first.body) == (sent, True)
    assert b'"processed_at":"2' in second.body
    assert (second.type, second.cursor) == ("user.message", "row_4")


async def test_a_stream_resumes_behind_a_cursor_without_gap_or_repetition(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    (one,) = await send(kitchen, session, message("1"))
    await mark(kitchen, session, one.event_id)
    await agent_message(kitchen, session, 1)
    async with aclosing(await kitchen.runtime.events.stream(session.id, after="row_0")) as items:
        whole = await upto(items, 3)
    async with aclosing(await kitchen.runtime.events.stream(session.id, after=whole[0].cursor)) as items:
        assert await upto(items, 2) == whole[1:]
    async with aclosing(await kitchen.runtime.events.stream(session.id, after=one.event_id)) as items:
        assert await upto(items, 2) == whole[1:]


async def test_previews_reach_those_who_asked(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    previews = frozenset({"agent.message"})
    async with aclosing(await kitchen.runtime.events.stream(session.id, previews=previews)) as items:
        kitchen.log.publish(session.id, Preview("sevt_1", "agent.message", True, b"{1}"))
        kitchen.log.publish(session.id, Preview("sevt_1", "agent.message", False, b"{2}"))
        start, delta = await upto(items, 2)
    assert [(start.type, start.body, start.cursor), (delta.type, delta.body, delta.cursor)] == [
        ("event_start", b"{1}", None),
        ("event_delta", b"{2}", None),
    ]


async def test_open_streams_are_told_that_the_session_is_deleted_and_end(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    first = await kitchen.runtime.events.stream(session.id)
    second = await kitchen.runtime.events.stream(session.id, after="row_0")
    await kitchen.runtime.sessions.delete(session.id)
    async with asyncio.timeout(5):
        ends = [[item async for item in items] for items in (first, second)]
    assert [[item.type for item in items] for items in ends] == [["session.deleted"]] * 2
    assert ends[0][0].body.split(b",")[0] == ends[1][0].body.split(b",")[0]
    validate(sdk.BetaManagedAgentsSessionDeletedEvent, ends[0][0].body)


async def test_waiting_returns_with_the_first_event_that_comes(kitchen: Kitchen) -> None:
    session = await kitchen.session()

    async def send_soon() -> None:
        await send(kitchen, session, message())

    batch, _ = await asyncio.gather(kitchen.runtime.events.wait(session.id, timeout_s=5), send_soon())
    assert [event.type for event in batch.events] == ["user.message"]
    assert (batch.next_after, batch.status, batch.has_more) == ("row_2", "running", False)


async def test_waiting_for_nothing_ends_in_time_and_keeps_its_place(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    batch = await kitchen.runtime.events.wait(session.id, timeout_s=0.01)
    assert (batch.events, batch.next_after, batch.status) == ((), "row_1", "idle")
    assert (await kitchen.runtime.events.wait(session.id, after=batch.next_after)).events == ()


async def test_reading_in_steps_sees_everything_once(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    sent = await send(kitchen, session, *[message(str(number)) for number in range(5)])
    seen: list[str] = []
    after, more = None, True
    while more:
        batch = await kitchen.runtime.events.wait(session.id, after=after, limit=2)
        seen += [event.event_id for event in batch.events]
        after, more = batch.next_after, batch.has_more
    assert seen == [event.event_id for event in sent]


async def test_events_of_other_types_do_not_end_a_wait(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await send(kitchen, session, message())
    wanted = frozenset({"agent.message"})

    async def speak() -> None:
        await send(kitchen, session, message())
        await agent_message(kitchen, session, 1)

    batch, _ = await asyncio.gather(kitchen.runtime.events.wait(session.id, timeout_s=5, types=wanted), speak())
    assert [event.type for event in batch.events] == ["agent.message"]


async def test_a_wait_on_a_session_that_is_deleted_ends(kitchen: Kitchen) -> None:
    session = await kitchen.session()

    async def delete() -> None:
        await kitchen.runtime.sessions.delete(session.id)

    waited, _ = await asyncio.gather(
        kitchen.runtime.events.wait(session.id, after="row_1", timeout_s=5), delete(), return_exceptions=True
    )
    assert isinstance(waited, NotFound)


async def test_a_large_event_is_kept_whole(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    source = {"type": "text", "media_type": "text/plain", "data": "ä" * 300_000}
    large: dict[str, object] = {"type": "user.message", "content": [{"type": "document", "source": source}]}
    (sent,) = await send(kitchen, session, large)
    assert sent.body.count("ä".encode()) == 300_000
    (shown,) = (await kitchen.runtime.events.list(session.id, EventQuery())).data
    assert shown.body == sent.body


async def test_the_brain_is_woken_by_what_is_in_the_log_even_if_the_sender_is_gone(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(send(kitchen, session, message()))
        kitchen.notes.on_wake = sending.cancel
    assert sending.cancelled()
    assert kitchen.notes.woken == [session.id]
    assert len(await listed(kitchen, session)) == 1
    await agent_message(kitchen, session, 1)
    assert kitchen.notes.woken == [session.id]
