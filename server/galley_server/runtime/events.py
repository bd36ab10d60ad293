"""Events: sent into a session, listed, streamed, waited for."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from galley_server.brain.drafts import event_draft, running
from galley_server.errors import AppendConflict, Conflict, InvalidRequest, NotFound, Unavailable
from galley_server.log.answers import Remembered
from galley_server.log.log import Log
from galley_server.log.projection import (
    PROCESSED_TYPE,
    QUEUED_TYPES,
    is_internal,
    processed_event,
    show,
    show_on_arrival,
    show_processed,
)
from galley_server.log.projection import ShownEvent as ShownEvent
from galley_server.log.row import Draft, Preview, Row
from galley_server.log.row import cursor as row_cursor
from galley_server.log.state import SessionState, Status
from galley_server.log.store import Summaries, SummaryColumns
from galley_server.log.summary import Summary
from galley_server.log.tail import Tail
from galley_server.runtime import cursor
from galley_server.runtime.admission import CALL_TYPES, KnownCall, admit, answered_id, known_calls
from galley_server.runtime.attachments import check_attachments
from galley_server.runtime.clock import Clock
from galley_server.runtime.event_drafts import client_drafts
from galley_server.runtime.files import Files
from galley_server.runtime.idempotency import Idempotency, Once
from galley_server.runtime.session_view import SessionViews
from galley_server.runtime.timeline import BEGIN, END, Place, Timeline, events_by_id
from galley_server.runtime.turnstile import Turnstile
from galley_server.wire import events as ev
from galley_server.wire.event_request import AnyClientEvent, UserInterruptParam, UserMessageParam
from galley_server.wire.page import Page
from galley_server.wire.query import EventQuery

_RETRIES: Final = 16
_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class ShownPreview:
    """A fragment of an event that is still being made. It has no place in the log to resume from."""

    type: str
    body: bytes
    cursor: None = None


StreamItem: TypeAlias = ShownEvent | ShownPreview


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What has happened since a cursor, and how the session stands now. Go on from `next_after`."""

    events: tuple[ShownEvent, ...]
    next_after: str
    has_more: bool
    status: Status
    stop_reason: ev.StopReason | None


class Events:
    def __init__(self, log: Log, summaries: Summaries[Summary], once: Once, *, files: Files, clock: Clock) -> None:
        self._log = log
        self._summaries = summaries
        self._once = once
        self._files = files
        self._clock = clock
        self._views = SessionViews(log)
        self._turnstile = Turnstile()

    async def send(
        self, session_id: str, events: Sequence[AnyClientEvent], *, once: Idempotency | None = None
    ) -> tuple[ShownEvent, ...]:
        """Append all events, or none, and return them with their ids. What they cause happens afterwards."""
        drafts = await client_drafts(events)
        kept = None if once is None else Remembered(once.key, once.fingerprint, lambda rows: _places(rows, len(drafts)))

        async def effect() -> tuple[ShownEvent, ...]:
            await check_attachments(self._files, events, "events")
            rows: Sequence[Row]
            if all(_is_free(event) for event in events):
                rows = await self._log.append(session_id, drafts, guard=_takes_events, remember=kept)
            else:
                async with self._turnstile.at(session_id):
                    rows = await self._append_checked(session_id, events, drafts, kept)
            return tuple(show_on_arrival(row) for row in rows[: len(drafts)])

        async def again(answer: bytes) -> tuple[ShownEvent, ...]:
            first, count = json.loads(answer)
            rows = await self._log.read(session_id, after=first - 1, limit=count)
            return tuple(show_on_arrival(row) for row in rows)

        return await self._once.run(once, effect, again)

    async def list(self, session_id: str, query: EventQuery) -> Page[ShownEvent]:
        """Each event once, in the order of processing, those that wait last."""
        await self._log.head(session_id)
        seen = 0 if query.after_event_id is None else await self._position(session_id, query.after_event_id)
        timeline = Timeline(self._log, session_id, query)
        if query.order == "asc":
            found = await timeline.after(_start(query, BEGIN), limit=query.limit + 1, seen=seen)
        else:
            found = await timeline.before(_start(query, END), limit=query.limit + 1, seen=seen)
        more = None
        if len(found) > query.limit:
            last = found[query.limit - 1].place
            more = cursor.encode("events", query.order, int(last.waiting), last.seq)
        return Page(tuple(one.event for one in found[: query.limit]), more)

    async def stream(
        self, session_id: str, *, after: str | None = None, previews: frozenset[str] = frozenset()
    ) -> AsyncGenerator[StreamItem]:
        """Return what happens from now on, or from behind a cursor: from here on nothing is missed.

        The items end with `session.deleted`, or when the server stops.
        """
        head = await self._log.head(session_id)
        seq = head.seq if after is None else await self._position(session_id, after)
        return self._shown(session_id, self._log.listen(session_id, after=seq, previews=previews))

    async def wait(
        self,
        session_id: str,
        *,
        after: str | None = None,
        timeout_s: float = 0.0,
        limit: int = 100,
        types: frozenset[str] = frozenset(),
    ) -> EventBatch:
        """Return what came after a cursor (None: from the beginning), waiting for the first of it if need be.

        As on a stream, an event that had to wait shows when it arrives and again when it is processed.
        """
        await self._log.head(session_id)
        seq = 0 if after is None else await self._position(session_id, after, field="after")
        found: Sequence[ShownEvent] = ()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None):
                while True:
                    rows = await self._log.read(session_id, after=seq, limit=_ROWS)
                    seq, found = await self._take(session_id, rows, seq, limit, types)
                    if found or (timeout_s <= 0 and len(rows) < _ROWS):
                        break
                    if len(rows) < _ROWS and not await self._grown(session_id, seq):
                        break
        summary = await self._summaries.summary(session_id)
        while seq < summary.seq and len(found) < limit:
            # The status below is that of the summary, so nothing that led to it may be missing above.
            rows = await self._log.read(session_id, after=seq, before=summary.seq + 1, limit=_ROWS)
            seq, more = await self._take(session_id, rows, seq, limit - len(found), types)
            found = (*found, *more)
        return EventBatch(
            events=tuple(found),
            next_after=row_cursor(seq),
            # The status is newer than the events: whoever stops at an idle one must not miss how it came about.
            has_more=seq < summary.seq,
            status=summary.shown_status,
            stop_reason=summary.stop_reason,
        )

    async def _take(
        self, session_id: str, rows: Sequence[Row], seq: int, limit: int, types: frozenset[str]
    ) -> tuple[int, Sequence[ShownEvent]]:
        """Show rows up to the limit; return where that was."""
        found = []
        for row in rows:
            seq = row.seq
            event = await self._show(session_id, row, {})
            if event is not None and (not types or event.type in types):
                found.append(event)
                if len(found) == limit:
                    break
        return seq, found

    async def _grown(self, session_id: str, seq: int) -> bool:
        """Wait until there is a row after `seq`; False if there never will be one."""
        tail = self._log.follow(session_id, after=seq)
        try:
            return await anext(tail, None) is not None
        finally:
            await tail.aclose()

    async def _shown(self, session_id: str, tail: Tail[Row | Preview]) -> AsyncGenerator[StreamItem]:
        waiting: dict[str, Row] = {}
        try:
            async for item in tail:
                if isinstance(item, Preview):
                    yield ShownPreview("event_start" if item.first else "event_delta", item.body)
                    continue
                event = await self._show(session_id, item, waiting)
                if event is not None:
                    yield event
        except NotFound:
            pass  # deleted between two reads
        finally:
            await tail.aclose()
        if await self._is_deleted(session_id):
            yield _farewell(session_id, self._clock())

    async def _show(self, session_id: str, row: Row, waiting: dict[str, Row]) -> ShownEvent | None:
        """Show a row where it stands; `waiting` spares a look for events seen before."""
        if row.type == PROCESSED_TYPE:
            event_id = processed_event(row)
            event = waiting.pop(event_id, None)
            if event is None:
                event = next((one for one in await events_by_id(self._log, session_id, {event_id: row})), None)
            return None if event is None else show_processed(event, row)
        if is_internal(row):
            return None
        if row.type in QUEUED_TYPES:
            waiting[row.id] = row
        return show_on_arrival(row)

    async def _append_checked(
        self, session_id: str, events: Sequence[AnyClientEvent], drafts: Sequence[Draft], kept: Remembered | None
    ) -> Sequence[Row]:
        """Append events that are good only for the state they were checked against."""
        answered = {call_id for event in events if (call_id := answered_id(event)) is not None}
        for _ in range(_RETRIES):
            summary = await self._summaries.summary(session_id)
            blocked = isinstance(summary.stop_reason, ev.RequiresAction)
            awaited = summary.stop_reason.event_ids if isinstance(summary.stop_reason, ev.RequiresAction) else ()
            calls = await self._calls(session_id, answered | set(awaited))
            admit(events, calls, thread_id=summary.thread_id, blocked=blocked)
            resumed: list[Draft] = []
            if awaited and answered and all(call_id in answered or calls[call_id].answered for call_id in awaited):
                agent = await self._views.agent(session_id, summary)
                resumed = running(SessionState(thread_id=summary.thread_id, stop_reason=summary.stop_reason), agent)
            with suppress(AppendConflict):
                return await self._log.append(
                    session_id, [*drafts, *resumed], expected=summary.seq, guard=_takes_events, remember=kept
                )
        raise Conflict(f"{session_id} is changing too fast to be answered; try again")

    async def _calls(self, session_id: str, call_ids: set[str]) -> dict[str, KnownCall]:
        first: int | None = None
        for call_id in call_ids:
            with suppress(NotFound):  # then it is not among the known calls, which says it better
                seq = await self._log.position(session_id, call_id)
                first = seq if first is None else min(first, seq)
        if first is None:
            return {}
        return known_calls(await self._log.read(session_id, after=first - 1, types=CALL_TYPES))

    async def _position(self, session_id: str, after: str, *, field: str = "after_event_id") -> int:
        try:
            seq = await self._log.position(session_id, after)
        except NotFound:
            raise InvalidRequest(
                f"{field}: '{after[:80]}' is neither an event of {session_id} nor a cursor like row_12"
            ) from None
        if seq > (last := (await self._log.head(session_id)).seq):
            # Waiting for that row would pass over everything until then.
            raise InvalidRequest(f"{field}: '{after[:80]}' lies ahead of {session_id}, which has {last} rows")
        return seq

    async def _is_deleted(self, session_id: str) -> bool:
        try:
            await self._log.head(session_id)
        except NotFound:
            return True
        except Unavailable:
            return False  # the server is stopping
        return False


def _is_free(event: AnyClientEvent) -> bool:
    """Whether the event is good in every state of an open session."""
    match event:
        case UserMessageParam() | UserInterruptParam(session_thread_id=None):
            return True
        case _:
            return False


def _takes_events(session: SummaryColumns) -> None:
    if session.archived:
        raise InvalidRequest("the session is archived and takes no more events")
    if session.status == "terminated":
        raise InvalidRequest("the session is terminated and takes no more events")


def _places(rows: Sequence[Row], count: int) -> bytes:
    return json.dumps([rows[0].seq, count]).encode()


def _start(query: EventQuery, default: Place) -> Place:
    if query.page is None:
        return default
    order, waiting, seq = cursor.decode(query.page, "events", str, int, int)
    if order != query.order:
        raise InvalidRequest(f"page: this cursor belongs to the order '{order}', not '{query.order}'")
    return Place(bool(waiting), int(seq))


def _farewell(session_id: str, at: datetime) -> ShownEvent:
    """What every open stream is told last. It is not in the log, because the log is gone; its id is always the same."""
    event = event_draft(ev.SessionDeleted(id=f"sevt_{session_id.removeprefix('sesn_')}"))
    return show(Row(0, event.id, event.type, event.body, at), processed_at=at)
