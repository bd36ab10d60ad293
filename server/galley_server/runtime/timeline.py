"""A session's events in the order of their processing: each once, those that wait last.

An event's place is the row it was processed at: its own row, or for a client event that had to wait the row that marks
it processed. Events that still wait come behind all others, in the order of their arrival.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from galley_server.log.log import Log
from galley_server.log.projection import (
    PROCESSED_TYPE,
    QUEUED_TYPES,
    ShownEvent,
    is_internal,
    processed_event,
    show,
    show_on_arrival,
    show_processed,
)
from galley_server.log.row import MAX_SEQ, Row
from galley_server.runtime.clock import floor
from galley_server.wire.query import EventQuery

_PAGE: Final = 500


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an event stands. Waiting ones sort behind the processed ones."""

    waiting: bool
    seq: int


BEGIN: Final = Place(False, 0)
END: Final = Place(True, MAX_SEQ)


@dataclass(frozen=True, slots=True)
class Placed:
    place: Place
    event: ShownEvent


class Timeline:
    """Reads one session's events. `limit` counts events, whatever rows lie between them."""

    def __init__(self, log: Log, session_id: str, query: EventQuery) -> None:
        self._log = log
        self._session_id = session_id
        self._query = query
        self._wanted = frozenset(query.types) or None

    async def after(self, place: Place, *, limit: int, seen: int) -> list[Placed]:
        """The events behind a place, first to last. Events whose row is not after row `seen` are left out."""
        found: list[Placed] = []
        seq = place.seq
        while not place.waiting and len(found) < limit:
            rows = await self._log.read(self._session_id, after=max(seq, seen), limit=_PAGE, types=self._types())
            found += await self._processed(rows)
            if len(rows) < _PAGE or self._past(rows[-1]):
                break
            seq = rows[-1].seq
        if len(found) < limit:
            waiting = await self._waiting()
            found += [one for one in waiting if one.place > place and one.place.seq > seen]
        return found[:limit]

    async def before(self, place: Place, *, limit: int, seen: int) -> list[Placed]:
        """The events in front of a place, last to first."""
        found: list[Placed] = []
        if place.waiting:
            found = [one for one in reversed(await self._waiting()) if one.place < place and one.place.seq > seen]
        before = MAX_SEQ if place.waiting else place.seq
        while len(found) < limit:
            rows = await self._log.read(
                self._session_id, after=seen, before=before, limit=_PAGE, types=self._types(), newest_first=True
            )
            found += await self._processed(rows)
            if len(rows) < _PAGE:
                break
            before = rows[-1].seq
        return found[:limit]

    def _types(self) -> Collection[str] | None:
        """The types of the rows at which wanted events show."""
        if self._wanted is None:
            return None
        waits = self._wanted & QUEUED_TYPES
        return (self._wanted - waits) | ({PROCESSED_TYPE} if waits else set())

    def _past(self, row: Row) -> bool:
        """Times never go back, so behind this row there is nothing in the range."""
        latest = self._query.created_at_lte or self._query.created_at_lt
        return latest is not None and floor(row.at) > latest

    async def _processed(self, rows: list[Row]) -> list[Placed]:
        marks = {processed_event(row): row for row in rows if row.type == PROCESSED_TYPE}
        events = {row.id: row for row in await events_by_id(self._log, self._session_id, marks)}
        shown = []
        for row in rows:
            if row.type == PROCESSED_TYPE:
                event = events.get(processed_event(row))
                if event is not None and (self._wanted is None or event.type in self._wanted):
                    shown.append(Placed(Place(False, row.seq), show_processed(event, row)))
            elif not is_internal(row) and row.type not in QUEUED_TYPES:
                shown.append(Placed(Place(False, row.seq), show_on_arrival(row)))
        return [one for one in shown if one.event.processed_at and self._query.holds(one.event.processed_at)]

    async def _waiting(self) -> list[Placed]:
        # What is not processed yet is not in any range of processing times.
        wanted = QUEUED_TYPES if self._wanted is None else QUEUED_TYPES & self._wanted
        if not wanted or self._query.bounded:
            return []
        rows = await self._log.read(self._session_id, types=QUEUED_TYPES | {PROCESSED_TYPE})
        done = {processed_event(row) for row in rows if row.type == PROCESSED_TYPE}
        return [
            Placed(Place(True, row.seq), show(row, processed_at=None))
            for row in rows
            if row.type in wanted and row.id not in done
        ]


async def events_by_id(log: Log, session_id: str, marks: dict[str, Row]) -> Iterable[Row]:
    """The rows of the marked events. An event lies in front of its mark, usually close."""
    missing = set(marks)
    found: list[Row] = []
    before = max((row.seq for row in marks.values()), default=0)
    while missing and before > 1:
        rows = await log.read(session_id, before=before, limit=len(missing) + 16, types=QUEUED_TYPES, newest_first=True)
        if not rows:
            break
        found += [row for row in rows if row.id in missing]
        missing -= {row.id for row in rows}
        before = rows[-1].seq
    return found
