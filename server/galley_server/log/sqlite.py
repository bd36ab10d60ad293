"""The store over SQLite: rows, heads, leases, large content, tombstones and summaries in one transaction."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, Generic, Self, TypeVar

import anyio.to_thread

from galley_server.errors import AppendConflict, ChainBroken, ConfigError, LeaseLost, NotFound
from galley_server.log import answers, blobs
from galley_server.log.answers import Remembered
from galley_server.log.chain import GENESIS, ChainKey
from galley_server.log.database import Database
from galley_server.log.instant import from_micros, to_micros
from galley_server.log.row import MAX_SEQ, Draft, Head, HeadMark, Row, Tombstone
from galley_server.log.store import Deleted, Grown, Guard, Notice, SummaryCodec, SummaryPage, SummaryQuery, Watcher
from galley_server.log.summary_table import SummaryTable
from galley_server.log.verify import Verified, verify

S = TypeVar("S")

_FIND: Final = "SELECT pk, seq, hash, at, epoch FROM sessions WHERE id = ?"
_ADD_SESSION: Final = "INSERT INTO sessions (id, seq, hash, at, signature) VALUES (?, 0, ?, 0, ?) RETURNING pk"
_ADD_ROW: Final = "INSERT INTO rows (session, seq, id, type, at, hash, cuts, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_MOVE_HEAD: Final = "UPDATE sessions SET seq = ?, hash = ?, at = ?, signature = ? WHERE pk = ?"
_ADD_TOMBSTONE: Final = """
INSERT INTO tombstones (session_id, session, seq, hash, at, caller, signature) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_COLUMNS: Final = "seq, id, type, at, cuts, body"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Session:
    """A session as an append finds it."""

    pk: int
    seq: int
    hash: bytes
    at: int
    epoch: int

    def check(self, session_id: str, *, fence: int | None, expected: int | None) -> None:
        """Raise unless an append may be added here. The lease comes first: who lost it has nothing to decide again."""
        if fence is not None and fence != self.epoch:
            raise LeaseLost(session_id, fence=fence, epoch=self.epoch)
        if expected is not None and expected != self.seq:
            raise AppendConflict(session_id, expected=expected, actual=self.seq)


class SqliteStore(Generic[S]):
    """The Store port over a Database. It decides by nothing but the database: what a crash leaves is what it goes on
    with."""

    def __init__(
        self, database: Database, key: ChainKey, codec: SummaryCodec[S], *, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._key = key
        self._codec = codec
        self._table = SummaryTable(codec)
        self._clock = clock
        self._watchers: list[Watcher] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        database: Database,
        key: ChainKey,
        codec: SummaryCodec[S],
        *,
        clock: Callable[[], datetime] = _now,
    ) -> AsyncIterator[Self]:
        """Fold the summaries anew if the codec changed. Raises ConfigError when the store has another key."""
        store = cls(database, key, codec, clock=clock)
        version = await database.write(store._claim)
        if version != codec.version:
            await store.rebuild_summaries()
        yield store

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        fence: int | None = None,
        expected: int | None = None,
        guard: Guard | None = None,
        remember: Remembered | None = None,
    ) -> list[Row]:
        if not drafts:
            raise ValueError("an append has at least one draft")
        if any(len(draft.body) > blobs.LIMIT for draft in drafts):
            # Hashing megabytes takes milliseconds that neither the event loop nor the writer has.
            cuts = await anyio.to_thread.run_sync(_cut_all, drafts)
        else:
            cuts = [blobs.Cut(draft.body, None, ()) for draft in drafts]

        def append(connection: sqlite3.Connection) -> list[Row]:
            if guard is not None:
                self._guard(connection, session_id, guard)
            rows = self._append(connection, session_id, drafts, cuts, fence, expected)
            if remember is not None:
                answer = remember.answer(rows)
                answers.remember(connection, remember.key, remember.fingerprint, answer, at=rows[-1].at)
            return rows

        return await self._database.write(append, committed=lambda rows: self._tell(Grown(session_id, tuple(rows))))

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
        types: Collection[str] | None = None,
        newest_first: bool = False,
    ) -> list[Row]:
        def read(connection: sqlite3.Connection) -> list[Row]:
            session = _find(connection, session_id).pk
            last = MAX_SEQ if before is None else before - 1
            sql, values = _range(session, after + 1, last, limit, types, newest_first=newest_first)
            return _rows(connection, session_id, connection.execute(sql, values).fetchall())

        return await self._database.read(read)

    async def seq_of(self, session_id: str, event_id: str) -> int | None:
        def find(connection: sqlite3.Connection) -> int | None:
            found: int | None
            (found,) = connection.execute(
                # The plus keeps the planner from walking the whole session instead of looking the id up.
                "SELECT min(seq) FROM rows WHERE id = ? AND +session = ?",
                (event_id, _find(connection, session_id).pk),
            ).fetchone()
            return found

        return await self._database.read(find)

    async def head(self, session_id: str) -> Head:
        session = await self._database.read(lambda connection: _find(connection, session_id))
        return Head(session.seq, session.hash, session.epoch)

    async def take_lease(self, session_id: str) -> int:
        def take(connection: sqlite3.Connection) -> int:
            epoch: int
            (epoch,) = connection.execute(
                "UPDATE sessions SET epoch = epoch + 1 WHERE pk = ? RETURNING epoch",
                (_find(connection, session_id).pk,),
            ).fetchone()
            return epoch

        return await self._database.write(take)

    async def delete(self, session_id: str, *, caller: str, guard: Guard | None = None) -> Tombstone:
        def delete(connection: sqlite3.Connection) -> Tombstone:
            if guard is not None:
                self._guard(connection, session_id, guard)
            return self._delete(connection, session_id, caller)

        return await self._database.write(
            delete,
            committed=lambda stone: self._tell(Deleted(stone.session_id)),
        )

    async def was_deleted(self, session_id: str) -> bool:
        return await self._database.read(lambda connection: _is_deleted(connection, session_id))

    async def verify(self, session_id: str, head: HeadMark | None = None) -> Verified:
        """Walk the chain of a session, or check its tombstone. Raises ChainBroken at the first thing that is not as it
        was written, NotFound if there never was such a session."""
        return await self._database.read(lambda connection: verify(connection, self._key, session_id, head))

    async def summary(self, session_id: str) -> S:
        def get(connection: sqlite3.Connection) -> S | None:
            return self._table.get(connection, _find(connection, session_id).pk)

        summary = await self._database.read(get)
        if summary is None:
            raise NotFound(f"{session_id} has no summary")
        return summary

    async def summaries(self, query: SummaryQuery) -> SummaryPage[S]:
        return await self._database.read(lambda connection: self._table.page(connection, query))

    async def rebuild_summaries(self) -> int:
        sessions = await self._database.read(
            lambda connection: connection.execute("SELECT id FROM sessions ORDER BY pk").fetchall()
        )
        # One session at a time: others can write in between, and what they append is in the fold of its session.
        rebuilt = 0
        for (session_id,) in sessions:
            rebuilt += await self._database.write(partial(self._rebuild, session_id))
        await self._database.write(self._note_version)
        return rebuilt

    def _guard(self, connection: sqlite3.Connection, session_id: str, guard: Guard) -> None:
        summary = self._table.get(connection, _find(connection, session_id).pk)
        if summary is not None:
            guard(self._codec.to_columns(summary))

    def _append(
        self,
        connection: sqlite3.Connection,
        session_id: str,
        drafts: Sequence[Draft],
        cuts: Sequence[blobs.Cut],
        fence: int | None,
        expected: int | None,
    ) -> list[Row]:
        try:
            session = _find(connection, session_id)
        except NotFound:
            if expected != 0 or _is_deleted(connection, session_id):
                raise
            session = self._begin(connection, session_id)
        session.check(session_id, fence=fence, expected=expected)
        at = max(to_micros(self._clock()), session.at)  # a clock that is set back does not reorder the log
        moment = from_micros(at)
        seq, chained = session.seq, session.hash
        rows: list[Row] = []
        stored: list[tuple[object, ...]] = []
        for draft, cut in zip(drafts, cuts, strict=True):
            seq += 1
            chained = self._key.row_hash(chained, session_id, seq, draft.id, draft.type, at, cut.cuts, cut.body)
            stored.append((session.pk, seq, draft.id, draft.type, at, chained, cut.cuts, cut.body))
            rows.append(Row(seq, draft.id, draft.type, draft.body, moment))
            if cut.blobs:
                _keep(connection, session.pk, cut.blobs)
        connection.executemany(_ADD_ROW, stored)
        signature = self._key.sign_head(session_id, seq, chained)
        connection.execute(_MOVE_HEAD, (seq, chained, at, signature, session.pk))
        self._table.add(connection, session.pk, session_id, rows, before=session.hash, after=chained)
        return rows

    def _begin(self, connection: sqlite3.Connection, session_id: str) -> _Session:
        signature = self._key.sign_head(session_id, 0, GENESIS)
        (pk,) = connection.execute(_ADD_SESSION, (session_id, GENESIS, signature)).fetchone()
        return _Session(pk, 0, GENESIS, 0, 0)

    def _delete(self, connection: sqlite3.Connection, session_id: str, caller: str) -> Tombstone:
        session = _find(connection, session_id)
        at = max(to_micros(self._clock()), session.at)
        stone = Tombstone(session_id, session.seq, session.hash, from_micros(at), caller)
        signature = self._key.sign_tombstone(stone, at)
        connection.execute(_ADD_TOMBSTONE, (session_id, session.pk, session.seq, session.hash, at, caller, signature))
        used = connection.execute("SELECT hash FROM blob_uses WHERE session = ?", (session.pk,)).fetchall()
        connection.execute("DELETE FROM rows WHERE session = ?", (session.pk,))
        connection.execute("DELETE FROM blob_uses WHERE session = ?", (session.pk,))
        connection.executemany(
            "DELETE FROM blobs WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM blob_uses WHERE hash = ?1)", used
        )
        connection.execute("DELETE FROM summaries WHERE session = ?", (session.pk,))
        connection.execute("DELETE FROM sessions WHERE pk = ?", (session.pk,))
        return stone

    def _rebuild(self, session_id: str, connection: sqlite3.Connection) -> int:
        try:
            session = _find(connection, session_id)
        except NotFound:  # deleted since it was listed
            return 0
        sql, values = _range(session.pk, 1, MAX_SEQ, None, None, newest_first=False)
        rows = _rows(connection, session_id, connection.execute(sql, values).fetchall())
        self._table.add(connection, session.pk, session_id, rows, before=GENESIS, after=session.hash)
        return 1

    def _claim(self, connection: sqlite3.Connection) -> int:
        """Make sure the key is the store's own, and return the version of its summaries."""
        facts = dict(connection.execute("SELECT name, value FROM log_facts").fetchall())
        if not facts:
            connection.execute("INSERT INTO log_facts VALUES ('key', ?)", (self._key.fingerprint,))
            self._note_version(connection)
            return self._codec.version
        if facts["key"] != self._key.fingerprint:
            raise ConfigError(
                "the key of the log is not the one this store was written with: put the right key file back"
            )
        return int(facts["summaries"])

    def _note_version(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO log_facts VALUES ('summaries', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (str(self._codec.version).encode(),),
        )

    def _tell(self, notice: Notice) -> None:
        for watcher in self._watchers:
            watcher(notice)


def _cut_all(drafts: Sequence[Draft]) -> list[blobs.Cut]:
    return [blobs.cut(draft.body) for draft in drafts]


def _find(connection: sqlite3.Connection, session_id: str) -> _Session:
    found = connection.execute(_FIND, (session_id,)).fetchone()
    if found is None:
        raise NotFound(f"Session {session_id} was not found.")
    return _Session(*found)


def _is_deleted(connection: sqlite3.Connection, session_id: str) -> bool:
    found = connection.execute("SELECT 1 FROM tombstones WHERE session_id = ?", (session_id,)).fetchone()
    return found is not None


def _keep(connection: sqlite3.Connection, session: int, contents: Iterable[blobs.Blob]) -> None:
    for blob in contents:
        connection.execute("INSERT INTO blobs (hash, content) VALUES (?, ?)", (blob.hash, blob.content))
        connection.execute("INSERT OR IGNORE INTO blob_uses (session, hash) VALUES (?, ?)", (session, blob.hash))


def _range(
    session: int, first: int, last: int, limit: int | None, types: Collection[str] | None, *, newest_first: bool
) -> tuple[str, list[str | int]]:
    """Return the statement for the rows of a range. It is made of fixed pieces; every value is a parameter."""
    where = "session = ? AND seq BETWEEN ? AND ?"
    values: list[str | int] = [session, first, last]
    if types is not None:
        where += f" AND type IN ({', '.join('?' * len(types))})"
        values += sorted(types)
    order = f"ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
    values.append(-1 if limit is None else limit)
    return f"SELECT {_COLUMNS} FROM rows INDEXED BY rows_in_order WHERE {where} {order}", values


def _rows(
    connection: sqlite3.Connection, session_id: str, found: list[tuple[int, str, str, int, str | None, bytes]]
) -> list[Row]:
    return [
        Row(seq, id, type, body if cuts is None else _whole(connection, session_id, seq, cuts, body), from_micros(at))
        for seq, id, type, at, cuts, body in found
    ]


def _whole(connection: sqlite3.Connection, session_id: str, seq: int, cuts: str, body: bytes) -> bytes:
    contents: dict[bytes, bytes] = {}
    for name in blobs.hashes(cuts):
        found = connection.execute("SELECT content FROM blobs WHERE hash = ?", (name,)).fetchone()
        if found is None:
            raise ChainBroken(session_id, seq=seq, reason="its large content is missing")
        contents[name] = found[0]
    return blobs.join(body, cuts, contents)
