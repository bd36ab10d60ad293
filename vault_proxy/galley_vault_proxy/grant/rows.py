"""What the registry keeps in `state.db`: ids, ends and revocations. SQL only; no token, no key, no secret."""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from galley_vault_proxy.grant.token import Grant, milliseconds, moment
from galley_vault_proxy.state import Schema

SCHEMA: Final = Schema(
    "registry",
    (
        """
        CREATE TABLE sessions (
            id TEXT PRIMARY KEY,
            vault_ids TEXT NOT NULL,
            expires_at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE grants (
            id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL,
            thread_id TEXT,
            issued_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            revoked_at INTEGER
        ) STRICT;
        CREATE INDEX grants_of_session ON grants (session_id);
        CREATE INDEX grants_by_end ON grants (expires_at);
        -- What other processes must be told. Removed when the grant would have ended anyway.
        CREATE TABLE revocations (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            grant_id TEXT NOT NULL,
            expires_at INTEGER NOT NULL
        ) STRICT;
        -- Sessions that are no longer listed, and whose secret store has not yet confirmed that all of it is revoked.
        CREATE TABLE closing (session_id TEXT PRIMARY KEY) STRICT;
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """A listed session: its grants count."""

    id: str
    vault_ids: tuple[str, ...]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """What is kept of a grant: enough to say whether it lives."""

    id: str
    session_id: str
    thread_id: str | None
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class News:
    """What changed in the file since a sequence number."""

    seq: int
    revoked: tuple[str, ...]
    sessions: frozenset[str]


def admit(db: sqlite3.Connection, grant: Grant, now: datetime) -> Session:
    """List a grant, and its session with everything that its grants need. Returns the session."""
    now_listed = merged(session(db, grant.session_id), grant)
    db.execute(
        "INSERT INTO sessions VALUES (?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET vault_ids = excluded.vault_ids, expires_at = excluded.expires_at",
        (now_listed.id, json.dumps(now_listed.vault_ids), milliseconds(now_listed.expires_at)),
    )
    db.execute(
        "INSERT INTO grants VALUES (?, ?, ?, ?, ?, NULL)",
        (grant.id, grant.session_id, grant.thread_id, milliseconds(now), milliseconds(grant.expires_at)),
    )
    return now_listed


def merged(before: Session | None, grant: Grant) -> Session:
    """The session with what one more grant of it needs."""
    if before is None:
        return Session(grant.session_id, grant.vault_ids, grant.expires_at)
    vault_ids = tuple(dict.fromkeys([*before.vault_ids, *grant.vault_ids]))
    return Session(before.id, vault_ids, max(before.expires_at, grant.expires_at))


def revoke_grant(db: sqlite3.Connection, grant_id: str, now: datetime) -> GrantRecord | None:
    """Mark it revoked and return it; None if it is not there."""
    db.execute(
        "INSERT INTO revocations (grant_id, expires_at)"
        " SELECT id, expires_at FROM grants WHERE id = ? AND revoked_at IS NULL",
        (grant_id,),
    )
    db.execute("UPDATE grants SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (milliseconds(now), grant_id))
    return record(db, grant_id)


def revoke_session(db: sqlite3.Connection, session_id: str, now: datetime) -> list[str]:
    """Unlist a session, revoke all its grants, and note that its secret store must be told. Returns the grants' ids."""
    found = db.execute("SELECT id FROM grants WHERE session_id = ? AND revoked_at IS NULL", (session_id,)).fetchall()
    for (grant_id,) in found:
        revoke_grant(db, grant_id, now)
    db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
    db.execute("INSERT OR IGNORE INTO closing VALUES (?)", (session_id,))
    return [grant_id for (grant_id,) in found]


def session(db: sqlite3.Connection, session_id: str) -> Session | None:
    row = db.execute("SELECT id, vault_ids, expires_at FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else _session(row)


def sessions(db: sqlite3.Connection, *, after: str = "", limit: int = -1) -> list[Session]:
    """In the order of their ids."""
    found = db.execute(
        "SELECT id, vault_ids, expires_at FROM sessions WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    )
    return [_session(row) for row in found]


def record(db: sqlite3.Connection, grant_id: str) -> GrantRecord | None:
    row = db.execute(f"SELECT {_RECORD} FROM grants WHERE id = ?", (grant_id,)).fetchone()
    return None if row is None else _record(row)


def live(db: sqlite3.Connection, now: datetime) -> list[GrantRecord]:
    """Every grant that counts: not revoked, not expired, of a listed session."""
    rows = db.execute(
        f"SELECT {_RECORD} FROM grants WHERE revoked_at IS NULL AND expires_at > ?"
        " AND session_id IN (SELECT id FROM sessions)",
        (milliseconds(now),),
    )
    return [_record(row) for row in rows]


def news(db: sqlite3.Connection, seq: int) -> News:
    revoked = db.execute("SELECT seq, grant_id FROM revocations WHERE seq > ? ORDER BY seq", (seq,)).fetchall()
    listed = frozenset(row[0] for row in db.execute("SELECT id FROM sessions"))
    return News(revoked[-1][0] if revoked else seq, tuple(grant_id for _, grant_id in revoked), listed)


def last_revocation(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM revocations").fetchone()[0])


def closing(db: sqlite3.Connection) -> list[str]:
    return [session_id for (session_id,) in db.execute("SELECT session_id FROM closing")]


def is_closing(db: sqlite3.Connection, session_id: str) -> bool:
    return db.execute("SELECT 1 FROM closing WHERE session_id = ?", (session_id,)).fetchone() is not None


def closed(db: sqlite3.Connection, session_id: str) -> None:
    db.execute("DELETE FROM closing WHERE session_id = ?", (session_id,))


def anything_to_sweep(db: sqlite3.Connection, now: datetime, old: datetime) -> bool:
    found = db.execute(
        "SELECT EXISTS (SELECT 1 FROM sessions WHERE expires_at <= ?)"
        " OR EXISTS (SELECT 1 FROM grants WHERE expires_at <= ?)",
        (milliseconds(now), milliseconds(old)),
    ).fetchone()
    return bool(found[0])


def sweep(db: sqlite3.Connection, now: datetime, old: datetime) -> Collection[str]:
    """End what has expired, and forget what ended before `old`. Returns the sessions that ended."""
    ended = [row[0] for row in db.execute("SELECT id FROM sessions WHERE expires_at <= ?", (milliseconds(now),))]
    for session_id in ended:
        revoke_session(db, session_id, now)
    db.execute("DELETE FROM grants WHERE expires_at <= ?", (milliseconds(old),))
    db.execute("DELETE FROM revocations WHERE expires_at <= ?", (milliseconds(old),))
    return ended


_RECORD: Final = "id, session_id, thread_id, issued_at, expires_at, revoked_at"


def _session(row: tuple[str, str, int]) -> Session:
    return Session(row[0], tuple(json.loads(row[1])), moment(row[2]))


def _record(row: tuple[str, str, str | None, int, int, int | None]) -> GrantRecord:
    return GrantRecord(
        row[0], row[1], row[2], moment(row[3]), moment(row[4]), None if row[5] is None else moment(row[5])
    )
