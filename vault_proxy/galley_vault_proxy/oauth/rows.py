"""Logins under way and refreshes under way, in `state.db`. What is secret in a login is sealed by the store."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, cast

from galley_vault_proxy.grant.token import milliseconds, moment
from galley_vault_proxy.state import Schema

LoginStatus: TypeAlias = Literal["pending", "exchanging", "completed", "failed"]

SCHEMA: Final = Schema(
    "oauth",
    (
        """
CREATE TABLE oauth_logins (
    id TEXT PRIMARY KEY,
    vault_id TEXT NOT NULL,
    mcp_server_url TEXT NOT NULL,
    issuer TEXT NOT NULL,
    state_hash TEXT NOT NULL UNIQUE,
    sealed TEXT NOT NULL,
    status TEXT NOT NULL,
    error TEXT,
    credential_id TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE oauth_refreshes (
    credential_id TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    held_until INTEGER NOT NULL,
    failed_version INTEGER NOT NULL DEFAULT 0,
    failed_until INTEGER NOT NULL DEFAULT 0
) STRICT;
""",
    ),
)

_LOGIN: Final = "id, vault_id, mcp_server_url, issuer, sealed, status, error, credential_id, created_at, expires_at"
_KEPT: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Login:
    id: str
    vault_id: str
    mcp_server_url: str
    issuer: str
    sealed: str
    status: LoginStatus
    error: str | None
    credential_id: str | None
    created_at: datetime
    expires_at: datetime


def add_login(db: sqlite3.Connection, new: Login, state_hash: str, *, limit: int) -> bool:
    """False when too many are under way."""
    now = milliseconds(new.created_at)
    db.execute("DELETE FROM oauth_logins WHERE expires_at < ?", (milliseconds(new.created_at - _KEPT),))
    open_ = db.execute(
        "SELECT count(*) FROM oauth_logins WHERE status IN ('pending', 'exchanging') AND expires_at > ?", (now,)
    ).fetchone()[0]
    if open_ >= limit:
        return False
    db.execute(
        "INSERT INTO oauth_logins (id, vault_id, mcp_server_url, issuer, state_hash, sealed, status, created_at, "
        "expires_at) VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?)",
        (
            new.id,
            new.vault_id,
            new.mcp_server_url,
            new.issuer,
            state_hash,
            new.sealed,
            now,
            milliseconds(new.expires_at),
        ),
    )
    return True


def login(db: sqlite3.Connection, login_id: str) -> Login | None:
    row = db.execute(f"SELECT {_LOGIN} FROM oauth_logins WHERE id = ?", (login_id,)).fetchone()
    return None if row is None else _login(row)


def state_hash(db: sqlite3.Connection, login_id: str) -> str | None:
    row = db.execute("SELECT state_hash FROM oauth_logins WHERE id = ?", (login_id,)).fetchone()
    return None if row is None else str(row[0])


def take_login(db: sqlite3.Connection, state_hash: str, now: datetime) -> Login | None:
    """The login that waits for this state; it waits no more, whatever becomes of it."""
    row = db.execute(
        "UPDATE oauth_logins SET status = 'exchanging' WHERE state_hash = ? AND status = 'pending' AND expires_at > ? "
        f"RETURNING {_LOGIN}",
        (state_hash, milliseconds(now)),
    ).fetchone()
    return None if row is None else _login(row)


def end_login(db: sqlite3.Connection, login_id: str, *, credential_id: str | None, error: str | None) -> None:
    """What was sealed is not needed any more."""
    db.execute(
        "UPDATE oauth_logins SET status = ?, credential_id = ?, error = ?, sealed = '' WHERE id = ?",
        ("failed" if error else "completed", credential_id, error, login_id),
    )


def failed_until(db: sqlite3.Connection, credential_id: str, version: int, now: datetime) -> bool:
    """Whether refreshing this version has failed a moment ago."""
    return (
        db.execute(
            "SELECT 1 FROM oauth_refreshes WHERE credential_id = ? AND failed_version = ? AND failed_until > ?",
            (credential_id, version, milliseconds(now)),
        ).fetchone()
        is not None
    )


def take_refresh(db: sqlite3.Connection, credential_id: str, holder: str, now: datetime, until: datetime) -> bool:
    """Become the one that refreshes. False: somebody else is. A holder that died is one whose time is over."""
    db.execute("DELETE FROM oauth_refreshes WHERE credential_id NOT IN (SELECT id FROM credentials)")
    return (
        db.execute(
            "INSERT INTO oauth_refreshes (credential_id, holder, held_until) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until "
            "WHERE held_until <= ?",
            (credential_id, holder, milliseconds(until), milliseconds(now)),
        ).rowcount
        > 0
    )


def leave_refresh(
    db: sqlite3.Connection, credential_id: str, holder: str, version: int, failed_until: datetime | None
) -> None:
    """Let others. `failed_until`: this version could not be refreshed, and until when not to try it again."""
    mine = (credential_id, holder)
    db.execute("UPDATE oauth_refreshes SET held_until = 0 WHERE credential_id = ? AND holder = ?", mine)
    if failed_until is not None:
        db.execute(
            "UPDATE oauth_refreshes SET failed_version = ?, failed_until = ? WHERE credential_id = ? AND holder = ?",
            (version, milliseconds(failed_until), *mine),
        )


def _login(row: Sequence[object]) -> Login:
    id_, vault_id, url, issuer, sealed, status, error, credential_id, created, expires = row
    assert isinstance(created, int)
    assert isinstance(expires, int)
    return Login(
        id=str(id_),
        vault_id=str(vault_id),
        mcp_server_url=str(url),
        issuer=str(issuer),
        sealed=str(sealed),
        status=cast(LoginStatus, status),
        error=None if error is None else str(error),
        credential_id=None if credential_id is None else str(credential_id),
        created_at=moment(created),
        expires_at=moment(expires),
    )
