"""The cached summaries: their columns, their pages. Functions of a connection, run by the store on its threads."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from galley_server.log.chain import GENESIS
from galley_server.log.instant import from_micros, to_micros
from galley_server.log.row import Row
from galley_server.log.store import Summarised, SummaryCodec, SummaryColumns, SummaryPage, SummaryPosition, SummaryQuery

S = TypeVar("S")

_MOST_KNOWN: Final = 256

_PUT: Final = """
INSERT INTO summaries (session, session_id, status, agent_id, agent_version, created_at, archived, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session) DO UPDATE SET
    status = excluded.status, agent_id = excluded.agent_id, agent_version = excluded.agent_version,
    created_at = excluded.created_at, archived = excluded.archived, data = excluded.data
"""


@dataclass(frozen=True, slots=True)
class _Known(Generic[S]):
    """A summary as it was last written, and the hash of the last row in it."""

    hash: bytes
    summary: S
    columns: SummaryColumns


class SummaryTable(Generic[S]):
    def __init__(self, codec: SummaryCodec[S]) -> None:
        self._codec = codec
        # Saves the decoding for sessions that are busy. Found again only by the hash of the row it ends with, so what
        # was rolled back is never taken for what is stored. Used by the thread that writes alone.
        self._known: dict[int, _Known[S]] = {}

    def get(self, connection: sqlite3.Connection, session: int) -> S | None:
        found = connection.execute("SELECT data FROM summaries WHERE session = ?", (session,)).fetchone()
        return None if found is None else self._codec.decode(found[0])

    def add(
        self,
        connection: sqlite3.Connection,
        session: int,
        session_id: str,
        rows: Sequence[Row],
        *,
        before: bytes,
        after: bytes,
    ) -> None:
        """Fold rows onto the summary of all rows up to the one with the hash `before`; the last has hash `after`."""
        codec = self._codec
        known = self._last_known(connection, session, before)
        summary = None if known is None else known.summary
        for row in rows:
            summary = codec.summarise(summary, row)
        if summary is None:
            return
        columns = codec.to_columns(summary)
        data = codec.encode(summary)
        if known is not None and columns == known.columns:
            # Naming an indexed column in an UPDATE rewrites its indexes, changed or not: three pages in each commit.
            connection.execute("UPDATE summaries SET data = ? WHERE session = ?", (data, session))
        else:
            connection.execute(
                _PUT,
                (
                    session,
                    session_id,
                    columns.status,
                    columns.agent_id,
                    columns.agent_version,
                    to_micros(columns.created_at),
                    columns.archived,
                    data,
                ),
            )
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[session] = _Known(after, summary, columns)

    def _last_known(self, connection: sqlite3.Connection, session: int, before: bytes) -> _Known[S] | None:
        known = self._known.pop(session, None)
        if before == GENESIS:
            return None
        if known is not None and known.hash == before:
            return known
        summary = self.get(connection, session)
        return None if summary is None else _Known(before, summary, self._codec.to_columns(summary))

    def page(self, connection: sqlite3.Connection, query: SummaryQuery) -> SummaryPage[S]:
        backwards = query.before is not None
        ascending = (query.order == "asc") != backwards
        edge = query.before or query.after
        where, values = _conditions(query, edge, ascending=ascending)
        direction = "ASC" if ascending else "DESC"
        # One more than asked for says whether there is a page beyond.
        found = connection.execute(
            f"SELECT session_id, created_at, data FROM summaries WHERE {where} "
            f"ORDER BY created_at {direction}, session_id {direction} LIMIT ?",
            (*values, query.limit + 1),
        ).fetchall()
        more = len(found) > query.limit
        found = found[: query.limit]
        if backwards:
            found.reverse()
        items = tuple(Summarised(session_id, self._codec.decode(data)) for session_id, _, data in found)
        if not found:
            return SummaryPage(items, None, None)
        first, last = _position(found[0]), _position(found[-1])
        has_next = more if not backwards else True
        has_previous = more if backwards else query.after is not None
        return SummaryPage(items, last if has_next else None, first if has_previous else None)


def _conditions(query: SummaryQuery, edge: SummaryPosition | None, *, ascending: bool) -> tuple[str, list[str | int]]:
    """Return the WHERE clause, made of fixed pieces, and the values of its parameters."""
    parts: list[str] = ["1"]
    values: list[str | int] = []

    def where(part: str, *given: str | int) -> None:
        parts.append(part)
        values.extend(given)

    if query.statuses:
        where(f"status IN ({', '.join('?' * len(query.statuses))})", *sorted(query.statuses))
    if query.agent_id is not None:
        where("agent_id = ?", query.agent_id)
    if query.agent_version is not None:
        where("agent_version = ?", query.agent_version)
    if not query.include_archived:
        where("archived = 0")
    created = query.created
    for comparison, moment in ((">", created.gt), (">=", created.gte), ("<", created.lt), ("<=", created.lte)):
        if moment is not None:
            where(f"created_at {comparison} ?", to_micros(moment))
    if edge is not None:
        where(
            f"(created_at, session_id) {'>' if ascending else '<'} (?, ?)", to_micros(edge.created_at), edge.session_id
        )
    return " AND ".join(parts), values


def _position(found: tuple[str, int, bytes]) -> SummaryPosition:
    return SummaryPosition(from_micros(found[1]), found[0])
