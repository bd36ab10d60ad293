"""How rows are shown: the official event with its `processed_at`, under a cursor. No I/O here.

A client event that waits its turn shows twice on a stream, under one event id: first queued (`processed_at` null),
then, at the row that marks it processed, with that row's time. In a list it shows once.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from galley_server.log.internal import Processed
from galley_server.log.row import Row
from galley_server.wire.base import rfc3339

QUEUED_TYPES: Final = frozenset({"user.message", "user.interrupt", "user.tool_confirmation", "system.message"})
"""The client events that are processed later than they arrive. `user.custom_tool_result` counts at once."""

PROCESSED_TYPE: Final = "internal.processed"


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event in official shape. `cursor` names the row it was shown at; `processed_at` is None while it is queued."""

    cursor: str
    event_id: str
    type: str
    processed_at: datetime | None
    body: bytes


def is_internal(row: Row) -> bool:
    return row.type.startswith("internal.")


def processed_event(row: Row) -> str:
    """Return the id of the event that an `internal.processed` row marks."""
    return Processed.model_validate_json(row.body).event_id


def show(row: Row, *, processed_at: datetime | None, at_row: Row | None = None) -> ShownEvent:
    """Show an event row. `at_row` is the row it shows at, if that is not its own."""
    stamp = b"null" if processed_at is None else b'"%s"' % rfc3339(processed_at).encode()
    body = b'%s,"processed_at":%s}' % (row.body[:-1], stamp)
    return ShownEvent((at_row or row).cursor, row.id, row.type, processed_at, body)


def show_on_arrival(row: Row) -> ShownEvent:
    """Show an event row as it looks at its own place in the log."""
    return show(row, processed_at=None if row.type in QUEUED_TYPES else row.at)


def show_processed(event: Row, mark: Row) -> ShownEvent:
    """Show a queued event again, at the row that marks it processed."""
    return show(event, processed_at=mark.at, at_row=mark)
