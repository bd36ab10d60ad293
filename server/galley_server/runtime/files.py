"""Files: what clients upload, and the copies that belong to sessions. A copy shares the bytes of its original."""

import mimetypes
import re
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self, TypeAlias

import anyio
from anyio import to_thread

from galley_server.errors import InvalidRequest, NotFound, TooLarge
from galley_server.ids import new_id
from galley_server.log.answers import remember
from galley_server.log.database import Database
from galley_server.log.instant import from_micros, to_micros
from galley_server.runtime import cursor
from galley_server.runtime.clock import Clock
from galley_server.runtime.content_store import Arrival, ContentStore
from galley_server.runtime.idempotency import Idempotency, Once
from galley_server.wire.file import File, FileScope
from galley_server.wire.page import DeletedFile, Page
from galley_server.wire.query import FileQuery

OnceFor: TypeAlias = Callable[[str], Idempotency | None]
"""What makes an upload repeatable, given the SHA-256 of its content: a retry frames the same content otherwise."""

PIECE: Final = 1 << 20
MAX_NAME: Final = 255
_UNKNOWN_TYPE: Final = "application/octet-stream"
_MIME: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}")
# Made at import, because it reads the system's tables from disk.
_TYPES: Final = mimetypes.MimeTypes()
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_COLUMNS: Final = "pk, id, sha256, size, filename, mime_type, created_at, expires_at, session_id"
_ADD: Final = """
INSERT INTO files (id, sha256, size, filename, mime_type, created_at, expires_at, session_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_FIND: Final = f"SELECT {_COLUMNS} FROM files WHERE id = ?"
_LIST: Final = f"""
SELECT {_COLUMNS} FROM files WHERE pk < ? AND (? IS NULL OR session_id = ?) ORDER BY pk DESC LIMIT ?
"""
_KNOWN: Final = f"SELECT {_COLUMNS} FROM files WHERE session_id = ? AND filename = ? AND sha256 = ? LIMIT 1"
_OF_SESSION: Final = "SELECT sha256 FROM files WHERE session_id = ?"
_DELETE: Final = "DELETE FROM files WHERE id = ?"
_DELETE_OF_SESSION: Final = "DELETE FROM files WHERE session_id = ?"
_USED: Final = "SELECT 1 FROM files WHERE sha256 = ? AND (expires_at IS NULL OR expires_at > ?)"
# A session's files are written just before the session, and go just after it: a crash may leave them alone.
_DELETE_ORPHANS: Final = """
DELETE FROM files WHERE session_id IS NOT NULL AND session_id NOT IN (SELECT id FROM sessions)
"""
_EXISTS: Final = "SELECT 1 FROM sessions WHERE id = ?"
_LAST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as the table has it."""

    pk: int
    id: str
    sha256: str
    size: int
    filename: str
    mime_type: str
    created_at: int
    expires_at: int | None
    session_id: str | None

    def expired(self, at: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= to_micros(at)

    def shown(self) -> File:
        return File(
            id=self.id,
            filename=self.filename,
            mime_type=self.mime_type,
            size_bytes=self.size,
            created_at=from_micros(self.created_at),
            downloadable=True,
            expires_at=None if self.expires_at is None else from_micros(self.expires_at),
            scope=None if self.session_id is None else FileScope(id=self.session_id),
        )


class Incoming:
    """An upload on its way: `write` what comes, then `store` it once everything about it is known."""

    def __init__(self, files: "Files", arrival: Arrival, limit: int | None) -> None:
        self._files = files
        self._arrival = arrival
        self._limit = limit
        self._buffer = bytearray()
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Raises TooLarge as soon as the file is known to be too large, Unavailable when the disk cannot take it."""
        self._size += len(data)
        if self._limit is not None and self._size > self._limit:
            raise TooLarge(f"file: larger than {self._limit} bytes, the limit of this server")
        self._buffer += data
        if len(self._buffer) >= PIECE:
            await self._flush()

    async def store(
        self,
        *,
        filename: str | None,
        media_type: str | None,
        expires_in_seconds: int | None = None,
        session_id: str | None = None,
        once: OnceFor | None = None,
        unless_known: bool = False,
    ) -> File:
        """`unless_known`: if the session has a file of this name with these bytes, return that one."""
        mime_type = mime_type_of(media_type, filename)
        name = checked_name(filename, mime_type)
        await self._flush()
        sha256 = await to_thread.run_sync(self._arrival.finish)
        known = await self._files.known(session_id, name, sha256) if unless_known else None
        if known is not None:
            return known
        return await self._files.add(
            self._arrival,
            sha256,
            name,
            mime_type,
            expires_in_seconds,
            session_id,
            None if once is None else once(sha256),
        )

    async def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        await to_thread.run_sync(self._arrival.write, data)


class Files:
    def __init__(self, database: Database, once: Once, directory: Path, *, limit: int | None, clock: Clock) -> None:
        self._database = database
        self._once = once
        self._contents = ContentStore(directory)
        self._limit = limit
        self._clock = clock
        # Between a content's arrival and its first row, nobody may find it unused and remove it.
        self._removing = anyio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: Database, once: Once, directory: Path, *, limit: int | None, clock: Clock
    ) -> AsyncIterator[Self]:
        """`directory` holds the contents; what a crash left in it is removed."""
        files = cls(database, once, directory, limit=limit, clock=clock)
        await to_thread.run_sync(files._contents.open)
        await database.write(lambda connection: connection.execute(_DELETE_ORPHANS).rowcount)
        kept = await database.read(lambda connection: connection.execute("SELECT sha256 FROM files").fetchall())
        hashes = {sha256 for (sha256,) in kept}
        await to_thread.run_sync(files._contents.sweep, lambda names: hashes.intersection(names))
        yield files

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[Incoming]:
        """Take an upload in pieces. What was not stored by the end is forgotten."""
        arrival = await to_thread.run_sync(self._contents.arrive)
        try:
            yield Incoming(self, arrival, self._limit)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(arrival.discard)

    async def upload(
        self,
        filename: str | None,
        media_type: str | None,
        content: AsyncIterator[bytes],
        *,
        expires_in_seconds: int | None = None,
        session_id: str | None = None,
        once: OnceFor | None = None,
    ) -> File:
        async with self.receive() as incoming:
            async for data in content:
                await incoming.write(data)
            return await incoming.store(
                filename=filename,
                media_type=media_type,
                expires_in_seconds=expires_in_seconds,
                session_id=session_id,
                once=once,
            )

    async def keep(self, session_id: str, filename: str, content: AsyncIterator[bytes]) -> None:
        """Store a file that a session made, unless it has one of this name with these bytes already."""
        async with self.receive() as incoming:
            async for data in content:
                await incoming.write(data)
            await incoming.store(filename=filename, media_type=None, session_id=session_id, unless_known=True)

    async def add(
        self,
        arrival: Arrival,
        sha256: str,
        filename: str,
        mime_type: str,
        expires_in_seconds: int | None,
        session_id: str | None,
        once: Idempotency | None,
    ) -> File:
        at = self._clock()
        expires_at = None if expires_in_seconds is None else at + timedelta(seconds=expires_in_seconds)
        stored = Stored(
            0,
            new_id("file"),
            sha256,
            arrival.size,
            filename,
            mime_type,
            to_micros(at),
            None if expires_at is None else to_micros(expires_at),
            session_id,
        )

        def add(connection: sqlite3.Connection) -> File:
            _add(connection, stored)
            if once is not None:
                answer = stored.shown().model_dump_json().encode()
                remember(connection, once.key, once.fingerprint, answer, at=at)
            return stored.shown()

        async def effect() -> File:
            async with self._removing:
                await to_thread.run_sync(self._contents.keep, arrival, sha256)
                try:
                    return await self._database.write(add)
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._remove_unused([sha256])
                    raise

        async def again(answer: bytes) -> File:
            return File.model_validate_json(answer)

        return await self._once.run(once, effect, again)

    async def retrieve(self, file_id: str) -> File:
        """Raises NotFound."""
        return (await self._find(file_id)).shown()

    async def list(self, query: FileQuery) -> Page[File]:
        """Newest first. Ids that name no file are left out."""
        if query.ids is not None:
            return Page(tuple(stored.shown() for stored in await self._named(query.ids)))
        limit = query.limit or 20
        before = cursor.position(query.page, "files") or _LAST
        values = (before, query.scope_id, query.scope_id, limit + 1)
        found = await self._database.read(lambda connection: connection.execute(_LIST, values).fetchall())
        stored = [Stored(*row) for row in found]
        more = cursor.encode("files", stored[limit - 1].pk) if len(stored) > limit else None
        return Page(tuple(one.shown() for one in stored[:limit]), more)

    async def delete(self, file_id: str) -> DeletedFile:
        def delete(connection: sqlite3.Connection) -> str:
            stored = _find(connection, file_id)
            connection.execute(_DELETE, (file_id,))
            return stored.sha256

        async with self._removing:
            await self._remove_unused([await self._database.write(delete)])
        return DeletedFile(id=file_id)

    async def content(self, file_id: str) -> AsyncGenerator[bytes]:
        """Yield the file in pieces of at most 1 MiB. Raises NotFound if there is no such file (any more)."""
        stored = await self._find(file_id)
        if stored.expired(self._clock()):
            raise NotFound(f"File {file_id} has expired.", error_code="file_expired")
        try:
            file = await anyio.open_file(self._contents.path(stored.sha256), "rb")
        except FileNotFoundError:
            raise NotFound(f"The content of file {file_id} is gone.") from None
        async with file:
            while piece := await file.read(PIECE):
                yield piece

    async def whole(self, file_id: str, *, limit: int) -> tuple[File, bytes] | None:
        """Return the file with its bytes, None if it is gone or larger than `limit`."""
        try:
            stored = await self._find(file_id)
            if stored.size > limit:
                return None
            return stored.shown(), b"".join([piece async for piece in self.content(file_id)])
        except NotFound:
            return None

    async def copy_into(self, session_id: str, file_ids: Sequence[str], *, field: str) -> Sequence[File]:
        """Give a session copies of its own. `field` names the list of ids in errors: `resources` for `resources.0`."""

        def copy(connection: sqlite3.Connection) -> Sequence[Stored]:
            at = self._clock()
            copies = []
            for index, file_id in enumerate(file_ids):
                original = _usable(connection, file_id, at, f"{field}.{index}.file_id")
                copies.append(
                    Stored(
                        0,
                        new_id("file"),
                        original.sha256,
                        original.size,
                        original.filename,
                        original.mime_type,
                        to_micros(at),
                        None,
                        session_id,
                    )
                )
            for stored in copies:
                _add(connection, stored)
            return copies

        return [stored.shown() for stored in await self._database.write(copy)]

    async def check(self, references: Iterable[tuple[str, str]]) -> dict[str, File]:
        """Return the files that are referred to, by id. Raises NotFound naming the place of one that is not there."""
        wanted = list(references)
        if not wanted:
            return {}

        def find(connection: sqlite3.Connection) -> dict[str, File]:
            at = self._clock()
            return {file_id: _usable(connection, file_id, at, place).shown() for place, file_id in wanted}

        return await self._database.read(find)

    async def forget_session(self, session_id: str, *, unless_it_exists: bool = False) -> None:
        """Delete the files of a session that is gone, or that was perhaps never begun."""

        def delete(connection: sqlite3.Connection) -> Sequence[str]:
            if unless_it_exists and connection.execute(_EXISTS, (session_id,)).fetchone() is not None:
                return []
            found = connection.execute(_OF_SESSION, (session_id,)).fetchall()
            connection.execute(_DELETE_OF_SESSION, (session_id,))
            return [sha256 for (sha256,) in found]

        async with self._removing:
            await self._remove_unused(await self._database.write(delete))

    async def known(self, session_id: str | None, filename: str, sha256: str) -> File | None:
        """The session's file of this name with these bytes, if there is one."""
        values = (session_id, filename, sha256)
        found = await self._database.read(lambda connection: connection.execute(_KNOWN, values).fetchone())
        return None if found is None else Stored(*found).shown()

    async def _named(self, file_ids: Sequence[str]) -> Sequence[Stored]:
        marks = ", ".join("?" * len(file_ids))
        sql = f"SELECT {_COLUMNS} FROM files WHERE id IN ({marks}) ORDER BY pk DESC"
        found = await self._database.read(lambda connection: connection.execute(sql, file_ids).fetchall())
        return [Stored(*row) for row in found]

    async def _find(self, file_id: str) -> Stored:
        return await self._database.read(lambda connection: _find(connection, file_id))

    async def _remove_unused(self, hashes: Collection[str]) -> None:
        """Remove contents that no file needs any more. Call it with the lock held."""
        at = to_micros(self._clock())

        def unused(connection: sqlite3.Connection) -> Sequence[str]:
            return [name for name in set(hashes) if connection.execute(_USED, (name, at)).fetchone() is None]

        for sha256 in await self._database.read(unused):
            await to_thread.run_sync(self._contents.remove, sha256)


def checked_name(filename: str | None, mime_type: str) -> str:
    """Only the last part of a path is kept; a file without a name gets one by its type."""
    name = re.split(r"[/\\]", filename or "")[-1].strip()
    if not name or name in (".", ".."):
        return "unnamed" + (_TYPES.guess_extension(mime_type) or "")
    if len(name) > MAX_NAME:
        raise InvalidRequest(f"file: the filename should have at most {MAX_NAME} characters (got {len(name)})")
    if _CONTROL.search(name):
        raise InvalidRequest("file: the filename holds a control character")
    return name


def mime_type_of(given: str | None, filename: str | None) -> str:
    """What the client says, unless it says nothing; then what the name says."""
    stated = (given or "").partition(";")[0].strip().lower()
    if stated and not _MIME.fullmatch(stated):
        raise InvalidRequest(f"file: '{stated[:80]}' is not a media type, e.g. text/csv")
    if stated and stated != _UNKNOWN_TYPE:
        return stated
    return _TYPES.guess_type(filename or "", strict=False)[0] or _UNKNOWN_TYPE


def _add(connection: sqlite3.Connection, stored: Stored) -> None:
    connection.execute(
        _ADD,
        (
            stored.id,
            stored.sha256,
            stored.size,
            stored.filename,
            stored.mime_type,
            stored.created_at,
            stored.expires_at,
            stored.session_id,
        ),
    )


def _find(connection: sqlite3.Connection, file_id: str, *, place: str = "") -> Stored:
    found = connection.execute(_FIND, (file_id,)).fetchone()
    if found is None:
        raise NotFound(f"{place}File {file_id[:80]} was not found.")
    return Stored(*found)


def _usable(connection: sqlite3.Connection, file_id: str, at: datetime, place: str) -> Stored:
    stored = _find(connection, file_id, place=f"{place}: ")
    if stored.expired(at):
        raise NotFound(f"{place}: File {file_id} has expired.", error_code="file_expired")
    return stored
