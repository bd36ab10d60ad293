"""The tables of the embedded store, and every statement on them. Plain functions of a connection."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, LiteralString, TypeVar

from galley_vault_proxy.errors import StoreUnavailable
from galley_vault_proxy.store.port import SecretRef
from galley_vault_proxy.store.sealing import Keys, NotAuthentic, UnknownKey, seal, unseal

T = TypeVar("T")

MIGRATIONS: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE secrets (
        vault_id TEXT NOT NULL,
        credential_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        key_id TEXT NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (vault_id, credential_id)
    ) STRICT;
    CREATE TABLE sealing_keys (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        key_id TEXT NOT NULL,
        sealed BLOB NOT NULL
    ) STRICT;
    CREATE TABLE wrapped (
        fingerprint TEXT PRIMARY KEY,
        vault_id TEXT NOT NULL,
        credential_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        sealed BLOB NOT NULL,
        expires_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE active_key (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), key_id TEXT NOT NULL) STRICT;
    """,
)


class OtherKey(Exception):
    """The file is sealed with another key by now: another process has rotated it."""


@dataclass(frozen=True, slots=True)
class SecretRow:
    version: int
    key_id: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class SealingKeyRow:
    id: str
    key_id: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class WrappedRow:
    version: int
    sealed: bytes


def with_keys(db: sqlite3.Connection, keys: Keys, function: Callable[[sqlite3.Connection, Keys], T]) -> T:
    """Change the file, sealing with the key that is in force in it. Raises OtherKey when that is none of these.

    What is sealed with a key that a rotation has just replaced would be lost with that key.
    """
    db.execute("PRAGMA secure_delete=ON")
    active = active_key(db)
    if active is None or active not in keys.by_id:
        raise OtherKey
    return function(db, Keys(active, keys.by_id))


def active_key(db: sqlite3.Connection) -> str | None:
    """None before the first keys."""
    found = db.execute("SELECT key_id FROM active_key").fetchone()
    return None if found is None else str(found[0])


def first_keys(db: sqlite3.Connection, keys: Keys) -> None:
    """Of several processes that make the store together, the first one's key counts; it is the same one anyway."""
    if active_key(db) is None:
        db.execute("INSERT INTO active_key VALUES (1, ?)", (keys.active,))
        _add_sealing_key(db, keys)


def version(db: sqlite3.Connection, ref: SecretRef) -> int:
    found = db.execute(
        "SELECT version FROM secrets WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id)
    ).fetchone()
    return 0 if found is None else int(found[0])


def get(db: sqlite3.Connection, ref: SecretRef) -> SecretRow | None:
    found = db.execute(
        "SELECT version, key_id, sealed FROM secrets WHERE vault_id = ? AND credential_id = ?",
        (ref.vault_id, ref.credential_id),
    ).fetchone()
    return None if found is None else SecretRow(*found)


def put(db: sqlite3.Connection, ref: SecretRef, version: int, key_id: str, sealed: bytes) -> None:
    db.execute(
        """
        INSERT INTO secrets VALUES (?, ?, ?, ?, ?) ON CONFLICT (vault_id, credential_id)
        DO UPDATE SET version = excluded.version, key_id = excluded.key_id, sealed = excluded.sealed
        """,
        (ref.vault_id, ref.credential_id, version, key_id, sealed),
    )


def purge(db: sqlite3.Connection, ref: SecretRef) -> None:
    db.execute("DELETE FROM secrets WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id))
    db.execute("DELETE FROM wrapped WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id))


def purge_vault(db: sqlite3.Connection, vault_id: str) -> None:
    db.execute("DELETE FROM secrets WHERE vault_id = ?", (vault_id,))
    db.execute("DELETE FROM wrapped WHERE vault_id = ?", (vault_id,))


def newest_sealing_key(db: sqlite3.Connection) -> SealingKeyRow | None:
    found = db.execute("SELECT id, key_id, sealed FROM sealing_keys ORDER BY number DESC LIMIT 1").fetchone()
    return None if found is None else SealingKeyRow(*found)


def sealing_key(db: sqlite3.Connection, key_id: str) -> SealingKeyRow | None:
    found = db.execute("SELECT id, key_id, sealed FROM sealing_keys WHERE id = ?", (key_id,)).fetchone()
    return None if found is None else SealingKeyRow(*found)


def put_wrapped(
    db: sqlite3.Connection,
    fingerprint: str,
    ref: SecretRef,
    version: int,
    sealed: bytes,
    now: float,
    expires_at: float,
) -> None:
    db.execute("DELETE FROM wrapped WHERE expires_at <= ?", (now,))
    db.execute(
        "INSERT INTO wrapped VALUES (?, ?, ?, ?, ?, ?)",
        (fingerprint, ref.vault_id, ref.credential_id, version, sealed, expires_at),
    )


def take_wrapped(db: sqlite3.Connection, fingerprint: str, ref: SecretRef, now: float) -> WrappedRow | None:
    found = db.execute(
        """
        DELETE FROM wrapped WHERE fingerprint = ? AND vault_id = ? AND credential_id = ? AND expires_at > ?
        RETURNING version, sealed
        """,
        (fingerprint, ref.vault_id, ref.credential_id, now),
    ).fetchall()
    return WrappedRow(*found[0]) if found else None


def reseal(db: sqlite3.Connection, keys: Keys) -> int:
    """Seal everything under the active key; return how many secrets that were. Values sealed before stay readable."""
    db.execute("PRAGMA secure_delete=ON")
    count = 0
    query = "SELECT vault_id, credential_id, version, key_id, sealed FROM secrets WHERE key_id <> ?"
    for vault_id, credential_id, number, key_id, sealed in db.execute(query, (keys.active,)).fetchall():
        bound = ("secret", vault_id, credential_id, str(number))
        db.execute(
            "UPDATE secrets SET key_id = ?, sealed = ? WHERE vault_id = ? AND credential_id = ?",
            (keys.active, _resealed(keys, key_id, sealed, *bound), vault_id, credential_id),
        )
        count += 1
    query = "SELECT id, key_id, sealed FROM sealing_keys WHERE key_id <> ?"
    for name, key_id, sealed in db.execute(query, (keys.active,)).fetchall():
        resealed = _resealed(keys, key_id, sealed, "sealing key", name)
        db.execute("UPDATE sealing_keys SET key_id = ?, sealed = ? WHERE id = ?", (keys.active, resealed, name))
    if active_key(db) != keys.active:
        db.execute("UPDATE active_key SET key_id = ?", (keys.active,))
        _add_sealing_key(db, keys)
    return count


def _add_sealing_key(db: sqlite3.Connection, keys: Keys) -> None:
    """What `seal` uses from now on. Never removed: sealed values lie elsewhere, and nobody can seal them anew."""
    fresh = Keys.new()
    sealed = seal(keys.key(keys.active), fresh.key(fresh.active), "sealing key", fresh.active)
    db.execute("INSERT INTO sealing_keys (id, key_id, sealed) VALUES (?, ?, ?)", (fresh.active, keys.active, sealed))


def _resealed(keys: Keys, key_id: str, sealed: bytes, *bound: str) -> bytes:
    try:
        return seal(keys.key(keys.active), unseal(keys.key(key_id), sealed, *bound), *bound)
    except (NotAuthentic, UnknownKey):
        # Nothing of the transaction is kept, and both keys stay on the disk.
        raise StoreUnavailable(f"{bound[-2]} cannot be unsealed with the keys at hand: nothing was rotated") from None
