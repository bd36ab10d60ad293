"""What can go wrong with the store's file, in words for people: the one table from SQLite's codes to Unavailable."""

import sqlite3
from typing import Final

from galley_server.errors import Unavailable

# Primary result codes (https://www.sqlite.org/rescode.html) that speak of the file or machine, not of the statement.
_FAULTS: Final[dict[int, str]] = {
    sqlite3.SQLITE_FULL: "the disk that holds {name} is full: free some space on it",
    sqlite3.SQLITE_READONLY: "{name} cannot be written: make it and its folder writable for the server's user",
    sqlite3.SQLITE_CORRUPT: "{name} is damaged: stop the server and restore a file that `galley backup` made",
    sqlite3.SQLITE_NOTADB: "{name} is no database: stop the server and restore a file that `galley backup` made",
    sqlite3.SQLITE_IOERR: "reading or writing {name} failed: check the disk and the system's log",
    sqlite3.SQLITE_CANTOPEN: "{name} cannot be opened: check that it and its folder exist and are accessible",
    sqlite3.SQLITE_PERM: "{name} cannot be accessed: check its permissions",
    sqlite3.SQLITE_AUTH: "{name} cannot be accessed: check its permissions",
    sqlite3.SQLITE_BUSY: "{name} is locked by another program: end whatever holds it open for writing",
    sqlite3.SQLITE_LOCKED: "{name} is locked by another program: end whatever holds it open for writing",
    sqlite3.SQLITE_PROTOCOL: "{name} could not be locked: end whatever else holds it open",
    sqlite3.SQLITE_NOLFS: "{name} has reached the largest size this file system allows",
    sqlite3.SQLITE_NOMEM: "the server ran out of memory",
    sqlite3.SQLITE_SCHEMA: "{name} was changed by another program: stop that program",
}

# The other primary codes speak of the statement: they are for whoever sent it.
STATEMENT: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_NOTFOUND,
        sqlite3.SQLITE_EMPTY,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_RANGE,
    }
)

# What was read so far, or the file behind the descriptors, may not be what is on the disk now.
_DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}
)


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_fault(error: BaseException) -> bool:
    """Whether the store, rather than the statement, failed."""
    return isinstance(error, sqlite3.Error) and _code(error) in _FAULTS


def is_damage(error: sqlite3.Error) -> bool:
    """Whether every connection should be opened again before it is trusted."""
    return _code(error) in _DAMAGE


def unavailable(error: sqlite3.Error, *, name: str) -> Unavailable:
    """Say what happened. Every fault gets its own sentence; anything else is told as SQLite tells it."""
    reason = _FAULTS.get(_code(error) or 0)
    sentence = f"{name}: {error}" if reason is None else reason.format(name=name)
    return Unavailable(f"nothing was stored: {sentence}. Galley goes on by itself when that is done.")
