"""`/v1/sessions/{session_id}/events`: what is said to a session, and what it says."""

import asyncio
from typing import Annotated

from pydantic import Field

from galley_server.errors import InvalidRequest
from galley_server.http.answer import Json, listing
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import Call
from galley_server.http.query import text, time, whole
from galley_server.http.stream import EventStream, Pace
from galley_server.runtime.events import Events
from galley_server.wire.base import Wire
from galley_server.wire.bounds import Id
from galley_server.wire.event_request import EventsSend
from galley_server.wire.page import join_json
from galley_server.wire.query import EventQuery, PreviewType

_LIST = {
    "after_event_id": text,
    "created_at[gt]": time,
    "created_at[gte]": time,
    "created_at[lt]": time,
    "created_at[lte]": time,
    "limit": whole,
    "order": text,
    "page": text,
    "types[]": text,
}
_STREAM = {"after_event_id": text, "event_deltas[]": text}


class StreamQuery(Wire):
    after_event_id: Id | None = None
    event_deltas: Annotated[tuple[PreviewType, ...], Field(max_length=100)] = ()


class EventFace:
    def __init__(self, events: Events, *, closing: asyncio.Event, pace: Pace) -> None:
        self._events = events
        self._closing = closing
        self._pace = pace

    def paths(self) -> Paths:
        return {
            "/v1/sessions/{session_id}/events": {
                "POST": Operation(self.send),
                "GET": Operation(self.list, _LIST),
            },
            "/v1/sessions/{session_id}/events/stream": {"GET": Operation(self.stream, _STREAM)},
        }

    async def send(self, call: Call) -> Json:
        request = await call.json(EventsSend)
        sent = await self._events.send(call.param("session_id"), request.events, once=call.once())
        return Json(b'{"data":%b}' % join_json(event.body for event in sent))

    async def list(self, call: Call) -> Json:
        found = await self._events.list(call.param("session_id"), call.query(EventQuery))
        return listing((event.body for event in found.data), found)

    async def stream(self, call: Call) -> EventStream:
        query = call.query(StreamQuery)
        items = await self._events.stream(
            call.param("session_id"), after=_resume_point(query, call), previews=frozenset(query.event_deltas)
        )
        return EventStream(items, closing=self._closing, request_id=call.request_id, pace=self._pace)


def _resume_point(query: StreamQuery, call: Call) -> str | None:
    """The cursor to resume from. A browser that reconnects repeats its URL and adds the header, which is newer."""
    last = call.header(b"last-event-id")
    if last is None or not last:
        return query.after_event_id
    if len(last) > 128:
        raise InvalidRequest("last-event-id: longer than any cursor of this server")
    return last
