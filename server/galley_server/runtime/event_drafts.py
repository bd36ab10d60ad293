"""Rows of what clients send: the event as they sent it, with the id it got. Pure but for the ids."""

from collections.abc import Sequence
from typing import Final

from anyio import to_thread

from galley_server.ids import new_id
from galley_server.log.row import Draft
from galley_server.wire import events as ev
from galley_server.wire.event_request import (
    AnyClientEvent,
    Base64DocumentParam,
    Base64ImageParam,
    DocumentParam,
    ImageParam,
    PlainTextParam,
    UserCustomToolResultParam,
    UserMessageParam,
)

# Writing more JSON than this would keep every other session waiting, so it goes to a thread.
_LARGE: Final = 256 * 1024

_EVENTS: Final[dict[str, type[ev.ClientEvent]]] = {
    "user.message": ev.UserMessage,
    "user.interrupt": ev.UserInterrupt,
    "user.tool_confirmation": ev.UserToolConfirmation,
    "user.custom_tool_result": ev.UserCustomToolResult,
    "system.message": ev.SystemMessage,
}


def client_draft(event: AnyClientEvent) -> Draft:
    # The event's own model puts the fields in the order of every event, and proves that what was admitted can be read.
    sent = _EVENTS[event.type].model_validate({"id": new_id("sevt"), **event.model_dump(exclude_none=True)})
    body = sent.model_dump_json(exclude_none=True).encode()
    return Draft(sent.id, sent.type, body)


async def client_drafts(events: Sequence[AnyClientEvent]) -> list[Draft]:
    def make() -> list[Draft]:
        return [client_draft(event) for event in events]

    return await to_thread.run_sync(make) if sum(map(_weight, events)) > _LARGE else make()


def _weight(event: AnyClientEvent) -> int:
    """About how many characters of data an event carries."""
    if not isinstance(event, UserMessageParam | UserCustomToolResultParam):
        return 0
    sources = (block.source for block in event.content or () if isinstance(block, ImageParam | DocumentParam))
    return sum(
        len(source.data)
        for source in sources
        if isinstance(source, Base64ImageParam | Base64DocumentParam | PlainTextParam)
    )
