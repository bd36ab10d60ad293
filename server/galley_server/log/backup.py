"""A copy of the store while it is in use: one consistent file, checked before it gets its name."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread

from galley_server.errors import ConfigError, InvalidRequest, Unavailable
from galley_server.log.chain import ChainKey
from galley_server.log.connection import readonly_uri
from galley_server.log.faults import unavailable
from galley_server.log.verify import reading, session_ids, verify

# Small steps with a breath between them leave the disk to the writer; the snapshot keeps them one consistent whole.
_PAGES_PER_STEP: Final = 512
_BREATH_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Backup:
    path: Path
    sessions: int
    size: int


async def backup(source: Path, destination: Path, key: ChainKey) -> Backup:
    """Copy the store at `source`, which may be in use, to a new file 0600, and check the copy and every chain in it.

    The key is deliberately not part of it: whoever got hold of such a file could sign what they like. Without the key
    file a restored store is refused, so keep a copy of that, too, in another place.

    Raises InvalidRequest if the destination exists, Unavailable if it cannot be written, ChainBroken if the store
    itself is not what was written.
    """
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    uri = await anyio.to_thread.run_sync(_reserve, source, destination, partial)
    try:
        try:
            await anyio.to_thread.run_sync(_copy, uri, partial)
        except sqlite3.Error as error:
            raise unavailable(error, name=f"the backup of {source.name}") from error
        sessions = await anyio.to_thread.run_sync(_check, partial, key)
        size = await anyio.to_thread.run_sync(_publish, partial, destination)
    finally:
        await anyio.to_thread.run_sync(_discard, partial)
    return Backup(destination, sessions, size)


def _reserve(source: Path, destination: Path, partial: Path) -> str:
    """Make the file that the copy goes to, and return the source as SQLite wants it named."""
    if destination.exists() or destination.is_symlink():
        raise InvalidRequest(f"{destination} exists: a backup never overwrites, choose another name")
    try:
        _discard(partial)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Unavailable(f"{destination} cannot be written: {error.strerror}") from error
    return readonly_uri(source)


def _copy(source: str, partial: Path) -> None:
    with (
        closing(sqlite3.connect(source, uri=True, isolation_level=None)) as store,
        closing(sqlite3.connect(partial, isolation_level=None)) as copy,
    ):
        # Without an open snapshot every write in between would make the copy start again, for ever under load.
        store.execute("BEGIN")
        store.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        store.backup(copy, pages=_PAGES_PER_STEP, sleep=_BREATH_S)
        # One file that needs nothing beside it, not even a folder it may write to.
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()


def _check(partial: Path, key: ChainKey) -> int:
    with reading(partial) as connection:
        problems = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if problems != [("ok",)]:
            raise Unavailable(f"the copy is damaged ({problems[0][0]}): check the disk and try again")
        (fingerprint,) = connection.execute("SELECT value FROM log_facts WHERE name = 'key'").fetchone() or (None,)
        if fingerprint not in (None, key.fingerprint):
            raise ConfigError("the key of the log is not the one this store was written with")
        sessions = session_ids(connection)
        for session_id in sessions:
            verify(connection, key, session_id)
        return len(sessions)


def _discard(partial: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _publish(partial: Path, destination: Path) -> int:
    """Give the copy its name, durably, unless somebody took the name meanwhile."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        os.link(partial, destination)
        folder = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise InvalidRequest(f"{destination} exists: a backup never overwrites, choose another name") from None
    except OSError as error:
        raise Unavailable(f"{destination} cannot be written: {error.strerror}") from error
    return size
