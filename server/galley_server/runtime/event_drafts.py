"""Rows of what clients send: the event as they sent it, with the id it got. Pure but for the ids."""

from typing import Final

from galley_server.ids import new_id
from galley_server.log.row import Draft
from galley_server.wire import events as ev
from galley_server.wire.event_request import AnyClientEvent

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
