"""Opening the store's file: permissions, pragmas, recognition. Blocking; called on the database's threads."""

import os
import sqlite3
from pathlib import Path
from typing import Final

from galley_server.errors import ConfigError, Unavailable
from galley_server.log.migrations import migrate, migrations, recognise

_EVERY: Final = """
PRAGMA busy_timeout = 5000;
PRAGMA foreign_keys = ON;
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA temp_store = MEMORY;
"""

# FULL: the write-ahead log is synced at every commit; NORMAL would lose acknowledged rows on power loss.
# secure_delete: what a deleted session said is overwritten, not left in free pages.
_WRITER: Final = """
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA checkpoint_fullfsync = ON;
PRAGMA secure_delete = ON;
PRAGMA journal_size_limit = 67108864;
"""


# STRICT tables and RETURNING.
_OLDEST_SQLITE: Final = (3, 37, 0)


def connect_writer(path: Path | None, *, create: bool) -> sqlite3.Connection:
    """Open the one connection that writes; None means memory.

    `create` also makes a missing file and brings an older one up to date. A file that is opened again, after a fault,
    must be the store it was: an empty one in its place is not quietly taken for it.
    """
    if path is None:
        connection = _connect(":memory:")
    else:
        if create:
            _make_private(path)
        connection = _connect(f"{path.absolute().as_uri()}?mode=rw")
    try:
        name = ":memory:" if path is None else path.name
        version = recognise(connection, name=name)
        if not create and version != len(migrations()):
            raise Unavailable(f"{name} is not the store it was: put the right file back")
        if path is not None and not _uses_wal(connection):
            raise ConfigError(f"{path} is on a file system without shared memory (a network share?): move GALLEY_HOME")
        connection.executescript(_WRITER)
        migrate(connection, name=name)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write, beside whoever else has the file open."""
    connection = _connect(readonly_uri(path))
    try:
        connection.execute("PRAGMA query_only = ON")
        if recognise(connection, name=path.name) != len(migrations()):
            raise ConfigError(
                f"{path.name} was written by an older Galley: start the server once to bring it up to date"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _uses_wal(connection: sqlite3.Connection) -> bool:
    # Asked before it is set: setting it writes to the file even when nothing changes.
    for pragma in ("PRAGMA journal_mode", "PRAGMA journal_mode = WAL"):
        if connection.execute(pragma).fetchone() == ("wal",):
            return True
    return False


def readonly_uri(path: Path) -> str:
    return f"{path.absolute().as_uri()}?mode=ro"


def _connect(target: str) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigError(f"this Python brings SQLite {sqlite3.sqlite_version}; Galley needs 3.37 or newer")
    connection = sqlite3.connect(target, uri=True, isolation_level=None, cached_statements=256)
    try:
        connection.executescript(_EVERY)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Create the file 0600, or tighten it. SQLite gives -wal and -shm the mode of the file itself."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if file.exists() and file.stat().st_mode & 0o077:
                file.chmod(0o600)
        return
    except OSError as error:
        raise Unavailable(f"{path} cannot be created: {error.strerror}") from error
    os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # else the first power loss could take the whole file with it
    finally:
        os.close(folder)
